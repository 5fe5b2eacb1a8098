"""How parameters move: Muon for the layers' matrices, Adam for embeddings and norms, one schedule for both."""

from __future__ import annotations

import optax
from optax.contrib import MuonDimensionNumbers, muon


def make_optimizer(steps: int, muon_rate: float = 0.02, adam_rate: float = 0.003) -> optax.GradientTransformation:
    """Rates rise over the first 2 % of `steps`, stay, and fall linearly to 0 over the last half.

    Muon (https://kellerjordan.github.io/posts/muon/) is for matrices between hidden states; an embedding is a table of
    vectors and stays with Adam. Gradients are clipped to a norm of 1.
    """

    def schedule(peak):
        rise, fall = max(1, steps // 50), steps // 2
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, peak, rise),
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, 0.0, fall),
            ],
            [rise, steps - fall],
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(muon_rate),
            adam_b2=0.99,
            adam_learning_rate=schedule(adam_rate),
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def _matrices(params: dict) -> dict:
    return {
        name: MuonDimensionNumbers() if name.startswith("layers.") and name.endswith(".kernel") else None
        for name in params
    }

"""How parameters move: Muon for the layers' matrices, Adam for embeddings and norms, one schedule for both."""

from __future__ import annotations

import optax
from optax.contrib import MuonDimensionNumbers, muon

# Constant, so that runs of different lengths are the same run until the shorter one starts to slow down.
_WARMUP = 80


def make_optimizer(
    steps: int, muon_rate: float = 0.02, adam_rate: float = 0.003, fall: float = 0.5
) -> optax.GradientTransformation:
    """Muon for matrices between hidden states, Adam for everything else; gradients are clipped to a norm of 1.

    Muon is https://kellerjordan.github.io/posts/muon/; an embedding is a table of vectors and stays with Adam.
    Parameters are a dictionary by dotted name, as `models.transformer.parameters` gives it.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(steps, muon_rate, fall),
            adam_b2=0.99,
            adam_learning_rate=schedule(steps, adam_rate, fall),
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def schedule(steps: int, peak: float, fall: float = 0.5) -> optax.Schedule:
    """A rate that rises over 80 steps (a tenth of a shorter run), stays, and falls linearly to 0 over a last share."""
    rise, fall = max(1, min(_WARMUP, steps // 10)), round(steps * fall)
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, rise), optax.constant_schedule(peak), optax.linear_schedule(peak, 0.0, fall)],
        [rise, steps - fall],
    )


def _matrices(params: dict) -> dict:
    return {
        name: MuonDimensionNumbers() if name.startswith("layers.") and name.endswith(".kernel") else None
        for name in params
    }

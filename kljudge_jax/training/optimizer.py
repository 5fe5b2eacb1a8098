"""How parameters move: Muon for the layers' matrices, Adam for embeddings and norms, one schedule for both."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

# Constant, so that runs of different lengths are the same run until the shorter one starts to slow down.
_WARMUP = 80

# (step, share of the peak rate), in order.
Turns = tuple[tuple[int, float], ...]


def make_optimizer(
    steps: int, muon_rate: float = 0.02, adam_rate: float = 0.003, turns: Turns = ()
) -> optax.GradientTransformation:
    """Muon for matrices between hidden states, Adam for everything else; gradients are clipped to a norm of 1.

    Muon is https://kellerjordan.github.io/posts/muon/; an embedding is a table of vectors and stays with Adam.
    Parameters are a dictionary by dotted name, as `models.transformer.parameters` gives it.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(steps, muon_rate, turns),
            adam_b2=0.99,
            adam_learning_rate=schedule(steps, adam_rate, turns),
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def schedule(steps: int, peak: float, turns: Turns = ()) -> optax.Schedule:
    """A rate that goes in straight lines from turn to turn.

    Without turns it rises over 80 steps (a tenth of a shorter run), stays, and falls to 0 over the last half.
    """
    rise = max(1, min(_WARMUP, steps // 10))
    turns = turns or ((0, 0.0), (rise, 1.0), (steps - steps // 2, 1.0), (steps, 0.0))
    places, shares = jnp.array(turns).T
    return lambda step: peak * jnp.interp(step, places, shares)


def _matrices(params: dict) -> dict:
    return {
        name: MuonDimensionNumbers(reduction_axis=1, output_axis=0)
        if name.startswith("layers.") and name.endswith(".weight")
        else None
        for name in params
    }

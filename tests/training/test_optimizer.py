"""Muon for the layers' matrices, Adam for the rest, and the schedule."""

import jax
import numpy as np
import pytest

from kljudge_jax.training.optimizer import make_optimizer, schedule

SHAPES = {"layers.0.mlp.gate.weight": (32, 16), "embedding.table": (40, 16), "final_norm.scale": (16,)}


def test_matrices_move_by_orthogonal_steps_and_the_rest_by_adam():
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    random = np.random.default_rng(1)
    gradient = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    optimizer = make_optimizer(20, muon_rate=0.5, adam_rate=0.25)

    @jax.jit
    def fourth_update(params, gradient):
        state = optimizer.init(params)
        for _ in range(4):
            update, state = optimizer.update(gradient, state, params)
        return update

    update = jax.device_get(fourth_update(params, gradient))
    singular = np.linalg.svd(update["layers.0.mlp.gate.weight"] / (0.5 * 2**0.5), compute_uv=False)
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3, "all directions move alike"
    # Adam divides a gradient that never changes by its own size: what is left is its sign, and the rate.
    for name in ("embedding.table", "final_norm.scale"):
        assert np.allclose(update[name] * np.sign(gradient[name]), -0.25, atol=0.03), name


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.0), (40, 0.5), (80, 1.0), (500, 1.0), (1000, 1.0), (1500, 0.5), (2000, 0.0)]
)
def test_rates_rise_stay_and_fall(step, share):
    assert float(schedule(2000, 0.02)(step)) == pytest.approx(0.02 * share, abs=1e-6)


def test_turns_are_joined_by_straight_lines():
    rate = schedule(10, 2.0, ((0, 0.0), (2, 1.0), (4, 1.0), (8, 0.5), (10, 0.0)))
    assert [float(rate(step)) for step in range(11)] == pytest.approx([0, 1, 2, 2, 2, 1.75, 1.5, 1.25, 1, 0.5, 0])


def test_a_shorter_run_is_the_same_until_it_slows_down():
    short, long = schedule(1000, 1.0), schedule(4000, 1.0)
    assert all(float(short(step)) == float(long(step)) for step in range(0, 501, 50))
    assert float(short(600)) < float(long(600))

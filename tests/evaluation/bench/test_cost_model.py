"""The cost model's mathematics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kljudge_jax.evaluation.bench.cost_model import CostModel, acceptance_rate, advice, expected_tokens, nondecreasing
from kljudge_jax.generation.stats import Cycle

rates = st.floats(0, 1)
lengths = st.integers(0, 40)
seconds = st.floats(1e-6, 1.0)


@given(rates, lengths)
def test_expected_tokens_are_the_geometric_sum(rate, length):
    tokens = expected_tokens(rate, length)
    assert 1 <= tokens <= length + 1
    if rate < 0.999:
        assert tokens == pytest.approx((1 - rate ** (length + 1)) / (1 - rate), rel=1e-9)
    else:
        assert tokens == pytest.approx(length + 1, rel=0.03)


@given(rates, lengths)
def test_a_longer_draft_never_gains_more_than_its_last_token(rate, length):
    gain = expected_tokens(rate, length + 1) - expected_tokens(rate, length)
    assert gain == pytest.approx(rate ** (length + 1), abs=1e-9)


@given(st.floats(0.05, 0.95), st.integers(1, 12), st.integers(0, 1000))
def test_the_rate_comes_back_from_cycles_drawn_with_it(rate, length, seed):
    random = np.random.default_rng(seed)
    accepted = np.cumprod(random.random((4000, length)) < rate, axis=1).sum(axis=1)
    found = acceptance_rate(Cycle(length, int(n), int(n) + 1) for n in accepted)
    assert found == pytest.approx(rate, abs=0.05)


def test_tokens_after_a_rejection_are_not_tested():
    assert acceptance_rate([Cycle(8, 3, 4), Cycle(8, 8, 9), Cycle(2, 2, 2)]) == 13 / 14
    assert acceptance_rate([Cycle(0, 0, 1)]) is None


@given(seconds, seconds, seconds, rates, st.integers(1, 16))
def test_the_best_length_is_the_fastest(step, first, last, rate, length):
    model = CostModel(step, {1: first, length + 1: last}, {0: 0.0, length: 0.1})
    speeds = [model.tokens_per_second(rate, k) for k in range(length + 1)]
    assert model.longest == length
    assert speeds[model.best_length(rate)] == max(speeds)


@given(seconds, seconds, rates)
def test_speed_is_tokens_over_the_time_of_a_cycle(step, once, rate):
    model = CostModel(step, {1: once, 9: once}, {0: 0.0, 8: 0.0})
    assert model.tokens_per_second(rate, 8) == pytest.approx(expected_tokens(rate, 8) / (8 * step + once))
    assert model.tokens_per_second(rate, 0) == pytest.approx(1 / once)


def test_passes_between_those_measured_lie_on_straight_lines():
    model = CostModel(0.5, {1: 1.0, 3: 2.0, 5: 6.0}, {0: 0.0, 4: 0.4})
    assert [model.pass_seconds(k) for k in range(5)] == pytest.approx([1.0, 1.6, 2.2, 4.3, 6.4])
    assert model.cycle_seconds(2) == pytest.approx(3.2)


def test_a_draft_that_costs_nothing_is_as_long_as_can_be_and_a_dear_one_does_not_pay():
    cheap, costly = (CostModel(step, {1: 1.0, 9: 1.0}, {0: 0.0}) for step in (1e-6, 1.0))
    assert cheap.best_length(0.9) == 8
    assert "try a longer one" in advice(cheap, 0.9) and "draft 8 tokens" in advice(cheap, 0.9)
    assert costly.best_length(0.9) == 0
    assert "does not pay" in advice(costly, 0.9)


def test_a_pass_over_more_positions_never_takes_less():
    assert nondecreasing({1: 1.0, 3: 2.0, 5: 1.6, 9: 3.0}) == pytest.approx({1: 1.0, 3: 1.8, 5: 1.8, 9: 3.0})
    assert nondecreasing({5: 1.0, 1: 3.0, 3: 2.0}) == pytest.approx({1: 2.0, 3: 2.0, 5: 2.0})
    rising = {1: 0.5, 2: 0.5, 9: 4.0}
    assert nondecreasing(rising) == rising

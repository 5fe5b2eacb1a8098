"""What cycles cost: by estimate, or by blocks that were timed."""

import numpy as np
import pytest

from kljudge_jax.decoding.adaptive import Adaptive
from kljudge_jax.decoding.cycle_costs import CycleCosts


def timed(costs, seconds_of, drafted=None):
    """Runs the blocks that are asked for; returns their lengths."""
    lengths = []
    while (block := costs.next()) is not None:
        length, cycles = block
        lengths.append(length)
        costs.took(length, np.full(cycles, length if drafted is None else drafted), cycles * seconds_of(length))
    return lengths


def test_without_a_measurement_it_is_the_estimate():
    costs = CycleCosts(Adaptive(maximum=4), 0.25)
    assert costs.next() is None and not costs.measured
    np.testing.assert_allclose(costs.table(), [1, 1.25, 1.5, 1.75, 2])


def test_lengths_take_turns_and_the_first_block_does_not_count():
    costs = CycleCosts(Adaptive(maximum=8, cost="measured"), 0.25)
    calls = iter([100.0] + [1.0] * 99)
    assert timed(costs, lambda w: (1 + 0.1 * w) * next(calls)) == [8, 8, 4, 2, 0, 8, 4, 2, 0]
    assert costs.measured
    np.testing.assert_allclose(costs.table(), 1 + 0.1 * np.arange(9), rtol=1e-6)


def test_the_best_of_the_blocks_counts_and_what_lies_between_is_between():
    costs = CycleCosts(Adaptive(maximum=4, cost="measured"), 0.25)
    noise = iter([1, 1, 1, 3, 3, 2, 2, 1, 1])
    timed(costs, lambda w: {0: 1.0, 1: 1.2, 2: 2.0, 4: 4.0}[w] * next(noise))
    np.testing.assert_allclose(costs.table(), [1, 1.2, 2, 3, 4], rtol=1e-6)


def test_quick_cycles_are_timed_in_longer_blocks():
    costs = CycleCosts(Adaptive(maximum=1, cost="measured"), 0.25)
    costs.took(1, np.array([1]), 9.0)
    for _ in range(2):
        length, cycles = costs.next()
        assert cycles == 2
        costs.took(length, np.full(cycles, length), cycles * (0.01 if length else 1e-5))
    assert [costs.next()] == [(1, 10)]
    costs.took(1, np.full(10, 1), 0.1)
    assert costs.next() == (0, 16)


@pytest.mark.parametrize("drafted", [0, 3])
def test_blocks_of_another_length_do_not_count_and_are_not_asked_for_forever(drafted):
    costs = CycleCosts(Adaptive(minimum=1, maximum=2, cost="measured"), 0.25)
    assert set(timed(costs, lambda w: 1.0, drafted)) == {1, 2}
    assert not costs.measured
    np.testing.assert_allclose(costs.table(), [1, 1.25, 1.5])
    costs.took(1, np.zeros(0, int), 1.0)  # a block in which no row ran


def test_a_table_can_leave_one_choice():
    assert CycleCosts(Adaptive(maximum=2), 0.25).only(1).tolist() == [np.inf, 1, np.inf]


def test_a_program_is_measured_once():
    adaptive = Adaptive(maximum=2, cost="measured")
    first = CycleCosts.of("a program", adaptive, 0.25)
    assert CycleCosts.of("a program", adaptive, 0.5) is first is not CycleCosts.of("another", adaptive, 0.25)
    assert CycleCosts.of("a program", Adaptive(maximum=2), 0.5) is not first

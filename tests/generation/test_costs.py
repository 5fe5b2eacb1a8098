"""What cycles cost: by estimate, or by blocks that were timed."""

import numpy as np
import pytest

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.generation.costs import CycleCosts


def timed(costs, seconds_of, drafted=None, tokens=1.0):
    """Runs the blocks that are asked for, `tokens` a cycle with a draft; returns their lengths."""
    lengths = []
    while (asked := costs.next()) is not None:
        length, cycles = asked
        lengths.append(length)
        found = np.full(cycles, length if drafted is None else drafted)
        costs.took(length, found, cycles, tokens if length else 1.0, cycles * seconds_of(length))
    return lengths


def test_without_a_measurement_it_is_the_estimate():
    costs = CycleCosts(Adaptive(maximum=4, cost="size"), 0.25, False)
    assert costs.next() is None and not costs.measured
    np.testing.assert_allclose(costs.table(), [1, 1.25, 1.5, 1.75, 2])


def test_a_first_block_is_not_counted_and_the_fastest_of_each_length_is():
    costs = CycleCosts(Adaptive(), 0.25, True)
    calls = iter([100.0, 1.0, 1.0, 3.0, 2.0, 1.0])
    lengths = timed(costs, lambda w: (1 + 0.1 * w) * next(calls), tokens=9.0)
    assert lengths == [0, 0, 2, 0, 2, 8] and costs.measured
    np.testing.assert_allclose(costs.table(), 1 + 0.1 * np.arange(9), rtol=1e-6)


def test_a_long_draft_is_timed_only_where_a_short_one_paid():
    for tokens, lengths in ((1.0, [0, 0, 2, 0, 2]), (2.0, [0, 0, 2, 0, 2, 8])):
        costs = CycleCosts(Adaptive(), 0.25, True)
        assert timed(costs, lambda w: 1 + 0.2 * w, tokens=tokens) == lengths
        np.testing.assert_allclose(costs.table(), 1 + 0.2 * np.arange(9), rtol=1e-6)


def test_no_longer_draft_is_taken_to_cost_less():
    costs = CycleCosts(Adaptive(), 0.25, True)
    timed(costs, lambda w: {0: 1.0, 2: 0.9, 8: 0.8}[w], tokens=9.0)
    np.testing.assert_allclose(costs.table(), 1.0)


def test_from_a_minimum_on_that_is_the_unit():
    costs = CycleCosts(Adaptive(minimum=3), 0.25, True)
    assert timed(costs, lambda w: 1.0 + w, tokens=1.0) == [3, 3, 4, 3, 4]
    np.testing.assert_allclose(costs.table()[3:], (1.0 + np.arange(3, 9)) / 4)


@pytest.mark.parametrize("drafted", [0, 3])
def test_blocks_of_another_length_do_not_count_and_are_not_asked_for_forever(drafted):
    costs = CycleCosts(Adaptive(minimum=1, maximum=2), 0.25, True)
    assert set(timed(costs, lambda w: 1.0, drafted)) <= {1, 2}
    assert not costs.measured
    np.testing.assert_allclose(costs.table(), [1, 1.25, 1.5])


def test_blocks_that_are_cut_short_are_not_asked_for_forever():
    costs, blocks = CycleCosts(Adaptive(maximum=2), 0.25, True), 0
    while (asked := costs.next()) is not None:
        costs.took(asked[0], np.zeros(0, int), asked[1], 1.0, 0.01)
        blocks += 1
        assert blocks < 30


def test_a_table_of_one_length_leaves_no_other():
    np.testing.assert_array_equal(CycleCosts(Adaptive(maximum=2), 0.2, True).only(1), [np.inf, 1, np.inf])


def test_a_program_is_measured_once():
    adaptive = Adaptive(maximum=2)
    first = CycleCosts.of("a program", adaptive, 0.25)
    assert CycleCosts.of("a program", adaptive, 0.5) is first
    assert CycleCosts.of("another", adaptive, 0.25) is not first
    assert CycleCosts.of("a program", Adaptive(maximum=2, cost="size"), 0.5) is not first

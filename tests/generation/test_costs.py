"""What cycles cost: by estimate, or by blocks that were timed."""

import numpy as np
import pytest

from kljudge_jax.core.controller import Adaptive, allowance
from kljudge_jax.generation.costs import CycleCosts


def timed(costs, seconds_of, drafted=None, tokens=1.0, block=0.0):
    """Runs the blocks that are asked for, `tokens` a cycle with a draft; returns their lengths, and what was lost."""
    lengths, lost = [], 0.0
    while (asked := costs.next()) is not None:
        length, cycles = asked
        lengths.append(length)
        found = np.full(cycles, length if drafted is None else drafted)
        lost += costs.took(length, found, tokens if length else 1.0, block + cycles * seconds_of(length))
    return lengths, lost


def measured(maximum=8, draft=0.0, estimate=0.25, batch=1, **options):
    return CycleCosts(Adaptive(maximum=maximum, **options), estimate, draft, batch)


def test_without_a_measurement_it_is_the_estimate():
    costs = CycleCosts(Adaptive(maximum=4, cost="size"), 0.25, 0.2, 1)
    assert costs.next() is None and not costs.measured
    np.testing.assert_allclose(costs.table(), [1, 1.25, 1.5, 1.75, 2])
    cycle, catch_up, spent, forced, together = costs.costs()
    np.testing.assert_array_equal(cycle, costs.table())
    np.testing.assert_allclose(catch_up, 0.2 + 15 * 0.2 * 0.05)  # sixteen positions of a model a fifth as large
    assert (spent, forced, together) == (0, -1, True)


def test_plain_cycles_are_timed_first_and_first_blocks_do_not_count():
    costs = measured(draft=0.1)
    calls = iter([100.0] + [1.0] * 3 + [5.0] + [1.0] * 99)
    lengths, _ = timed(costs, lambda w: (1 + 0.1 * w) * next(calls), tokens=9.0)
    assert lengths == [0, 0, 0, 0, 2, 2, 2, 8, 8, 4, 4] and costs.measured
    np.testing.assert_allclose(costs.table(), 1 + 0.1 * np.arange(9), rtol=1e-6)


def test_the_best_of_the_blocks_counts_and_what_lies_between_has_the_next_pass():
    noise = iter([1, 1, 3, 1, 1, 3, 1, 2, 1, 1, 2])
    costs = measured(4)
    timed(costs, lambda w: {0: 1.0, 1: 1.2, 2: 2.0, 4: 4.0}[w] * next(noise), tokens=9.0)
    np.testing.assert_allclose(costs.table(), [1, 1.2, 2, 4, 4], rtol=1e-6)
    half = CycleCosts(Adaptive(maximum=4), 0.25, 0.4, 1)
    timed(half, lambda w: {0: 1.0, 1: 1.5, 2: 2.0, 4: 4.0}[w], tokens=9.0)
    np.testing.assert_allclose(half.table(), [1, 1.5, 2, 3.6, 4], rtol=1e-6)  # by one draft step less


def test_what_a_block_costs_by_itself_falls_out():
    costs = measured(4, 0.2)
    timed(costs, lambda w: 0.01 * (1 + 0.2 * w), tokens=9.0, block=0.005)
    np.testing.assert_allclose(costs.table()[1:] - 1, 0.2 * np.arange(1, 5), rtol=1e-3)


@pytest.mark.parametrize("token", [0.02, 0.3, 1.0, 5.0])
def test_timing_stops_when_half_of_what_may_be_lost_is(token):
    """It can pass that by the first draft only, whose cost the estimate has wrong."""
    costs = measured(draft=token)
    lengths, lost = timed(costs, lambda w: 0.01 * (1 + token * w))
    assert lost <= max(allowance(1) / 2, 2 * token)
    assert lengths[4:5] == [2] and costs.measured  # one draft is tried, and what it took is kept
    assert costs.table()[8] == pytest.approx(1 + 8 * token, rel=1e-3)
    if token == 0.02:
        assert 8 in lengths
        np.testing.assert_allclose(costs.table(), 1 + token * np.arange(9), rtol=1e-3)


@pytest.mark.parametrize(("estimate", "batch", "drafts"), [(0.9, 1, 1), (1.1, 1, 0), (1.1, 2, 1), (3.3, 2, 0)])
def test_a_first_draft_is_timed_where_all_that_may_be_lost_allows_it(estimate, batch, drafts):
    """Two tokens, at the worst in vain; several rows may lose more than one."""
    costs = measured(estimate=estimate, batch=batch)
    lengths, _ = timed(costs, lambda w: 0.01 * (1 + estimate * w))
    assert sum(length > 0 for length in lengths) == drafts


@pytest.mark.parametrize(("estimate", "drafts"), [(0.6, 1), (0.7, 0)])
def test_what_a_draft_catches_up_with_counts_before_it_is_timed(estimate, drafts):
    """Plain cycles were timed by then, which cost the draft as much as one token: three are affordable, or are not."""
    lengths, _ = timed(measured(draft=estimate, estimate=estimate), lambda w: 0.01 * (1 + estimate * w))
    assert sum(length > 0 for length in lengths) == drafts


def test_a_later_run_times_what_the_first_could_not():
    """Its first draft was in vain, and what a cold cycle took is no measure."""
    adaptive = Adaptive()
    for run in range(2):
        costs = CycleCosts.of("in vain", adaptive, 0.43, 0.2, 1)
        lengths, _ = timed(costs, lambda w, cold=run == 0: 0.01 * (1 + (0.7 if cold else 0.43) * w))
        assert [length for length in lengths if length][:1] == [2]
    assert costs.table()[2] < 2


def test_a_draft_is_never_taken_to_cost_nothing():
    """Noise may have it so; its weights are read all the same."""
    costs = measured(draft=0.2)
    timed(costs, lambda w: 1.0, tokens=9.0)
    np.testing.assert_allclose(costs.table(), 1 + 0.1 * np.arange(9), rtol=1e-6)


def test_from_a_minimum_on_there_is_no_limit():
    costs = measured(minimum=1)
    lengths, _ = timed(costs, lambda w: 1.0 + w)
    assert lengths == [2, 2, 2, 2, 4, 4, 4, 8, 8]
    np.testing.assert_allclose(costs.table(), [1, 1, 1, 5 / 3, 5 / 3, 3, 3, 3, 3], rtol=1e-6)


@pytest.mark.parametrize("drafted", [0, 3])
def test_blocks_of_another_length_do_not_count_and_are_not_asked_for_forever(drafted):
    costs = CycleCosts(Adaptive(minimum=1, maximum=2), 0.25, 0.0, 1)
    assert set(timed(costs, lambda w: 1.0, drafted)[0]) <= {1, 2}
    assert not costs.measured
    np.testing.assert_allclose(costs.table(), [1, 1.25, 1.5])
    assert costs.took(1, np.zeros(0, int), 0.0, 1.0) == 0  # a block in which no row ran


def test_blocks_that_are_cut_short_are_not_asked_for_forever():
    """Drafts that pay cost nothing to time, so that nothing else would end it."""
    costs, blocks = measured(maximum=2), 0
    while (asked := costs.next()) is not None:
        length, cycles = asked
        costs.took(length, np.full(1 if length else cycles, length), 9.0, 0.01 * (1 if length else cycles))
        blocks += 1
        assert blocks < 30


def test_a_drafter_that_seldom_fills_a_block_is_not_held_at_the_shortest_length():
    costs, blocks = CycleCosts(Adaptive(minimum=1, maximum=2), 0.25, 0.0, 1), 0
    while (asked := costs.next()) is not None:
        length, cycles = asked
        found = np.full(cycles, length)
        found[2:] = 0  # two cycles are filled and no more, so that no long block ever is
        costs.took(length, found, 2.0, 0.001 * cycles)
        blocks += 1
        assert blocks < 30
    assert costs.measured
    np.testing.assert_allclose(costs.table()[1], 1.0)


def test_what_a_run_leaves_behind_is_not_the_next_ones():
    adaptive = Adaptive(maximum=2)
    first = CycleCosts.of("shared", adaptive, 0.25, 0.0, 1)
    for _ in range(3):
        length, cycles = first.next()
        first.took(length, np.zeros(cycles, int), 1.0, 1.0)
    assert first._idle > 0 and CycleCosts.of("shared", adaptive, 0.25, 0.0, 1)._idle == 0


def test_a_program_is_measured_once():
    adaptive = Adaptive(maximum=2)
    first = CycleCosts.of("a program", adaptive, 0.25, 0.0, 1)
    assert CycleCosts.of("a program", adaptive, 0.5, 0.0, 1) is first
    assert CycleCosts.of("another", adaptive, 0.25, 0.0, 1) is not first
    assert CycleCosts.of("a program", Adaptive(maximum=2, cost="size"), 0.5, 0.0, 1) is not first

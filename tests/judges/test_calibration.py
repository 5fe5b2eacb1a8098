"""The promise, by simulation: over many calibrations it is broken no more often than it says."""

import functools
import itertools

import numpy as np
import pytest
import scipy.stats

from kljudge_jax.judges import calibration
from kljudge_jax.judges.calibration import (
    Outcome,
    fixed_sequence,
    loss_interval,
    p_value,
    prompts_needed,
    smallest_set,
    upper_bound,
)

BUDGET, DELTA, N, REDRAWS = 0.05, 0.05, 120, 2500


@pytest.fixture(scope="module", autouse=True)
def each_p_value_once():
    """Redraws repeat counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "p_value", functools.lru_cache(None)(calibration.p_value))
        yield


def together(random, thresholds):
    """One luck for all thresholds: what a threshold loses, every more relaxed one with as much to lose loses too."""
    luck = random.random(N)
    return [np.where(luck < p, 1, np.where(luck > 1 - q, -1, 0)) for p, q in thresholds]


def apart(random, thresholds):
    """Every threshold for itself."""
    return [random.choice([1, -1, 0], N, p=[p, q, 1 - p - q]) for p, q in thresholds]


def outcome_of(d, paired=True):
    return Outcome(len(d), int((d == 1).sum()), int((d == -1).sum()) if paired else None)


def promise(world, random, thresholds, paired=True):
    """The index of the chosen threshold, -1 for none."""
    outcomes = (outcome_of(d, paired) for d in world(random, thresholds))
    return sum(p <= DELTA for p in fixed_sequence(outcomes, BUDGET, DELTA)) - 1


# P(lost) and P(won) at each threshold, strict to relaxed.
WORLDS = {
    "all right at the budget": [(0.07, 0.02)] * 5,
    "at the budget, never a win": [(0.05, 0.0)] * 5,
    "good ones first": [(0.01, 0.01), (0.03, 0.02), (0.07, 0.02), (0.1, 0.03), (0.15, 0.01)],
    "one good one, then all at the budget": [(0.0, 0.01), *[(0.06, 0.01)] * 5],
    "far beyond": [(0.12, 0.01), (0.2, 0.02)],
}


@pytest.mark.parametrize("world", [together, apart])
@pytest.mark.parametrize("name", WORLDS)
def test_the_promise_is_broken_no_more_often_than_it_says(world, name):
    random, thresholds = np.random.default_rng(7), WORLDS[name]
    losses = [p - q for p, q in thresholds]
    picks = [promise(world, random, thresholds) for _ in range(REDRAWS)]
    broken = sum(pick >= 0 and losses[pick] >= BUDGET - 1e-12 for pick in picks)
    # A true rate of 0.05 passes this number in one of a thousand runs of the test.
    assert broken <= scipy.stats.binom.ppf(0.999, REDRAWS, DELTA)


@pytest.mark.parametrize("world", [together, apart])
def test_the_promise_of_agreement_is_kept_too(world):
    random, thresholds = np.random.default_rng(8), [(0.005, 0), (0.05, 0), (0.05, 0), (0.08, 0)]
    picks = [promise(world, random, thresholds, paired=False) for _ in range(REDRAWS)]
    assert sum(pick > 0 for pick in picks) <= scipy.stats.binom.ppf(0.999, REDRAWS, DELTA)
    assert sum(pick >= 0 for pick in picks) > 0.8 * REDRAWS


def test_without_the_right_test_the_promise_would_be_broken(monkeypatch):
    """What the simulation can see: a p-value from the estimate alone breaks the promise half the time."""
    monkeypatch.setattr(calibration, "p_value", lambda outcome, budget, delta: 0.0 if outcome.loss < budget else 1.0)
    random = np.random.default_rng(7)
    broken = sum(promise(apart, random, WORLDS["all right at the budget"]) >= 0 for _ in range(500))
    assert broken > 100


def test_in_a_good_world_it_promises():
    random, thresholds = np.random.default_rng(9), [(0.0, 0.0), (0.01, 0.01), (0.01, 0.01), (0.2, 0.0)]
    picks = [promise(together, random, thresholds) for _ in range(300)]
    assert sum(pick == 2 for pick in picks) > 150 and max(picks) == 2


def test_nothing_is_asked_for_after_the_first_that_fails():
    def outcomes():
        yield Outcome(1000, 0, 0)
        yield Outcome(1000, 80, 10)
        pytest.fail("the sequence had ended")

    first, second = fixed_sequence(outcomes(), 0.01)
    assert first < 0.05 < second


def test_an_outcome_counts_pairs():
    outcome = Outcome.of([True, True, False, False, True], [True, False, True, False, False])
    assert outcome == Outcome(5, 2, 1) and outcome.loss == pytest.approx(0.2)
    assert Outcome(10, 3, None).loss == 0.3
    with pytest.raises(ValueError, match="shorter"):
        Outcome.of([True, False], [True])


@pytest.mark.parametrize("budget", [0.05, 0.1])
@pytest.mark.parametrize("delta", [0.05, 0.2])
@pytest.mark.parametrize("paired", [True, False])
def test_the_smallest_set_is_the_first_that_can_pass(budget, delta, paired):
    won = 0 if paired else None
    n = smallest_set(budget, delta, paired)
    assert p_value(Outcome(n, 0, won), budget, delta) <= delta < p_value(Outcome(n - 1, 0, won), budget, delta)


def test_the_smallest_sets_of_common_budgets():
    assert smallest_set(0.01, paired=False) == 299  # 0.99^299 = 0.0495
    assert [smallest_set(budget) for budget in (0.005, 0.01, 0.02, 0.05)] == [602, 301, 150, 59]


@pytest.mark.parametrize(("n", "lost", "won"), [(100, 0, 0), (100, 3, 3), (200, 2, 6), (150, 12, 1)])
def test_the_upper_bound_is_the_budget_that_just_passes(n, lost, won):
    outcome = Outcome(n, lost, won)
    bound = upper_bound(outcome)
    assert outcome.loss < bound < 1
    assert p_value(outcome, bound) <= 0.05 < p_value(outcome, bound - 0.002)


def test_a_rule_that_loses_everything_has_no_bound():
    assert upper_bound(Outcome(10, 10, 0)) == 1.0


@pytest.mark.parametrize(("n", "differing"), [(300, 0), (300, 4), (50, 50)])
def test_the_bounds_of_disagreement_are_clopper_pearsons(n, differing):
    test = scipy.stats.binomtest(differing, n)
    outcome = Outcome(n, differing, None)
    assert loss_interval(outcome) == pytest.approx(tuple(test.proportion_ci(0.95, method="exact")), abs=1e-6)
    one_sided = scipy.stats.binomtest(differing, n, alternative="less").proportion_ci(0.95, method="exact")
    assert upper_bound(outcome) == pytest.approx(one_sided.high, abs=1e-6)


def test_the_interval_covers_the_loss_and_turns_round_with_the_roles():
    low, high = loss_interval(Outcome(150, 2, 9))
    assert low < -7 / 150 < high and loss_interval(Outcome(150, 9, 2)) == (-high, -low)
    random, covered = np.random.default_rng(2), 0
    intervals = functools.lru_cache(None)(lambda lost, won: loss_interval(Outcome(40, lost, won)))
    for lost, won, _ in random.multinomial(40, [0.06, 0.02, 0.92], 400):
        low, high = intervals(int(lost), int(won))
        covered += low <= 0.04 <= high
    assert covered >= scipy.stats.binom.ppf(0.001, 400, 0.95)


def test_how_many_prompts_would_do():
    outcome = Outcome(100, 4, 4)
    n = prompts_needed(outcome, 0.05)
    assert n > 100 and p_value(outcome, 0.05) > 0.05
    assert p_value(Outcome(n, round(n * 0.04), round(n * 0.04)), 0.05) == pytest.approx(0.05, abs=0.015)
    assert prompts_needed(Outcome(100, 7, 2), 0.05) is None  # it loses the budget
    assert prompts_needed(Outcome(100, 4, None), 0.05) > 500


def test_more_relaxed_budgets_are_easier():
    outcome = Outcome(300, 5, 3)
    p = [p_value(outcome, budget) for budget in (0.01, 0.02, 0.03, 0.05)]
    assert all(a >= b for a, b in itertools.pairwise(p))

"""Intervals and tests beside SciPy's."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from kljudge_jax.evaluation.report.statistics import (
    holm,
    mcnemar,
    paired_difference,
    ratio_interval,
    speed_ratio_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (15, 30), (30, 30), (912, 1319)])
def test_the_share_interval_is_wilsons(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_says_nothing_of_a_share():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_paired_test_is_the_exact_binomial_one():
    for won, lost, both, neither in itertools.product((0, 1, 4, 11), (0, 1, 5), (0, 3), (0, 2)):
        ours = [True] * won + [False] * lost + [True] * both + [False] * neither
        theirs = [False] * won + [True] * lost + [True] * both + [False] * neither
        expected = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert mcnemar(ours, theirs) == pytest.approx(expected, rel=1e-9)
        assert mcnemar(theirs, ours) == mcnemar(ours, theirs)


def test_the_paired_test_needs_pairs():
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def test_the_interval_of_a_ratio_nears_scipys_bootstrap_where_there_are_many_pairs():
    random = np.random.default_rng(1)
    below = random.integers(30, 40, 300).astype(float)
    above = below * random.uniform(1, 4, 300)
    expected = scipy.stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=0,
    ).confidence_interval
    low, high = ratio_interval(above, below)
    width = expected.high - expected.low
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.1 * width)
    assert low < above.sum() / below.sum() < high


def test_an_interval_of_equal_pairs_is_students_on_the_logarithm():
    seconds = np.array([1.0, 1.1, 0.95, 1.02, 1.3])
    # Where pairs differ by little, the jackknife of the total is the standard error of the mean.
    low, high = ratio_interval(seconds, [1] * 5)
    expected = scipy.stats.t(4).ppf(0.975) * seconds.std(ddof=1) / math.sqrt(5) / seconds.mean()
    assert math.log(high / low) / 2 == pytest.approx(expected, rel=0.1)


def test_the_interval_of_a_ratio_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        below = random.integers(5, 20, 50)
        above = random.poisson(2.5 * below)
        low, high = ratio_interval(above, below)
        covered += low <= 2.5 <= high
    assert 178 <= covered <= 198  # 190 expected


@pytest.mark.parametrize("noise", [0.05, 0.15])
@pytest.mark.parametrize("uneven", ["even", "drawn", "a short last turn"])
@pytest.mark.parametrize("turns", [4, 5, 10, 50])
def test_intervals_of_speeds_cover_the_truth_whatever_the_number_of_turns(turns, uneven, noise):
    random, draws, covered = np.random.default_rng(turns), 400, np.zeros(2)
    for _ in range(draws):
        tokens = np.full(turns, 4000.0)
        if uneven == "drawn":
            tokens *= random.lognormal(0, 0.3, turns)
        elif uneven == "a short last turn":
            tokens[-1] /= 5
        ours, theirs = random.lognormal(-(noise**2) / 2, noise, (2, turns)) * tokens
        drift = random.lognormal(0, 0.1, turns)  # the machine slows down both of a turn
        low, high = speed_ratio_interval((tokens, ours * drift / 2), (tokens, theirs * drift))
        covered[0] += low <= 2 <= high
        low, high = ratio_interval(tokens, ours)
        covered[1] += low <= 1 <= high
    # A true share of 0.945, the least of 6,000 draws each, gives fewer than 364 one time in a thousand.
    assert (covered >= 364).all()


@pytest.mark.parametrize(("above", "below"), [([], []), ([3, 4], [0, 0])])
def test_the_interval_of_nothing_is_nothing(above, below):
    assert ratio_interval(above, below) == (0.0, 0.0)


def test_one_pair_has_no_width():
    assert ratio_interval([6], [3]) == pytest.approx((2.0, 2.0))
    assert ratio_interval([6, 0], [3, 0]) == pytest.approx((2.0, 2.0))


def test_pairs_that_all_agree_leave_no_doubt():
    assert ratio_interval([2, 4, 8], [1, 2, 4]) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("rates", [(0.02, 0.02), (0.05, 0.01), (0.3, 0.1)])
def test_the_paired_difference_covers_the_truth_about_as_often_as_it_says(rates):
    lose, win = rates
    random, covered = np.random.default_rng(3), 0
    for _ in range(400):
        drawn = random.random(200)
        theirs = drawn >= win  # we win where they fail
        ours = ~((drawn >= win) & (drawn < win + lose))
        difference, (low, high) = paired_difference(ours, theirs)
        assert low <= difference <= high
        covered += low <= win - lose <= high
    assert 370 <= covered <= 398  # 95 % of 400 is 380, give or take 4.4


def test_the_paired_difference_of_nothing_says_nothing():
    assert paired_difference([], []) == (0.0, (-1.0, 1.0))
    assert paired_difference([True] * 4, [True] * 4)[0] == 0.0


def test_holm_corrects_as_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_a_speed_ratio_that_is_the_same_everywhere_has_no_width():
    ours, theirs = ([10, 30, 50], [1, 3, 5]), ([10, 30, 50], [2, 6, 10])
    assert speed_ratio_interval(ours, theirs) == pytest.approx((2.0, 2.0))
    low, high = speed_ratio_interval(([10, 30, 50], [1, 4, 4]), theirs)
    assert low < 90 / 9 / (90 / 18) < high

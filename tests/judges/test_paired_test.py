"""The exact paired test: valid by enumeration, monotone, and stronger than its rivals."""

import math

import numpy as np
import pytest
import scipy.stats
from rival_tests import DELTA, RIVALS

from kljudge_jax.judges.paired_test import binomial_p_value, binomial_upper_bound, paired_p_value, score


def counts(n):
    return [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]


def probability(lost, won, n, p, q):
    """Of every count, by the multinomial's product of two binomials."""
    rest = min(1.0, q / (1 - p)) if p < 1 else 0.0
    return scipy.stats.binom.pmf(lost, n, p) * scipy.stats.binom.pmf(won, n - lost, rest)


def reject_up_to(n, budget, most_won):
    """For every number of wins the most losses at which the hypothesis is rejected at DELTA; -1 for none."""
    lost, most = -1, []
    for won in range(most_won + 1):
        while lost + 1 + won <= n and paired_p_value(lost + 1, won, n, budget) <= DELTA:
            lost += 1
        most.append(lost)
    return np.array(most)


@pytest.mark.parametrize(("n", "budget"), [(1, 0.3), (6, 0.01), (9, 0.2), (14, 0.1), (10, 0.0), (10, -0.15), (8, 0.7)])
def test_the_p_value_is_super_uniform_by_enumeration(n, budget):
    every = np.array(counts(n))
    p_values = np.array([paired_p_value(lost, won, n, budget) for lost, won in every])
    levels = np.unique(p_values)
    for gap in (0.0, 0.05, 0.3):  # at the edge of the hypothesis, the least favourable case, and inside it
        for q in np.linspace(max(0.0, -budget - gap), 1, 41):
            p = q + budget + gap
            if p >= 0 and p + q <= 1:
                chance = probability(every[:, 0], every[:, 1], n, p, q)
                below = np.array([chance[p_values <= level].sum() for level in levels])
                assert np.all(below <= levels + 1e-9)


def test_the_p_value_is_the_supremum_and_hardly_more():
    n, budget, risk = 60, 0.05, 0.001
    every = np.array(counts(n))
    scores = score(every[:, 0], every[:, 1], n, budget)
    for lost, won in ((0, 0), (1, 3), (2, 2), (5, 5), (9, 1)):
        as_low = scores <= score(lost, won, n, budget) + 1e-9
        limit = scipy.stats.beta.ppf(1 - risk, lost + 1, n - lost)
        p = np.linspace(budget, min(limit, (1 + budget) / 2), 500)
        best = max(probability(*every[as_low].T, n, x, x - budget).sum() for x in p)
        assert best + risk - 1e-9 <= paired_p_value(lost, won, n, budget, risk) <= best * 1.007 + risk + 2e-5


@pytest.mark.parametrize(("n", "budget"), [(12, 0.05), (40, 0.01), (25, 0.3), (20, -0.1), (20, 0.0)])
def test_the_score_orders_all_counts_by_losses_and_by_wins(n, budget):
    for lost, won in counts(n):
        if lost + won < n:
            here = score(lost, won, n, budget)
            assert score(lost + 1, won, n, budget) >= here - 1e-9
            assert score(lost, won + 1, n, budget) <= here + 1e-9


def test_the_score_is_that_of_the_likeliest_null():
    lost, won, n, budget = 7, 4, 90, 0.06
    q = np.linspace(1e-6, (1 - budget) / 2 - 1e-6, 200_001)
    log = lost * np.log(q + budget) + won * np.log(q) + (n - lost - won) * np.log(1 - 2 * q - budget)
    likeliest = q[log.argmax()]
    expected = (lost - won - n * budget) / math.sqrt(n * (2 * likeliest + budget - budget**2))
    assert float(score(lost, won, n, budget)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "budget"), [(150, 0.02), (400, 0.01)])
def test_more_losses_never_help_and_more_wins_never_hurt(n, budget):
    p = np.array([[paired_p_value(lost, won, n, budget) for won in range(9)] for lost in range(9)])
    slack = 0.006 * p + 2e-5  # what the search may lie above the supremum
    assert np.all(p[1:] >= p[:-1] - slack[:-1]) and np.all(p[:, 1:] <= p[:, :-1] + slack[:, :-1])
    assert p[8, 0] > p[0, 0] and p[8, 8] < p[8, 0]


def test_without_discordant_prompts_it_nears_the_binomial_test():
    for n, budget in ((100, 0.05), (300, 0.01), (598, 0.005)):
        # The binomial test may take it that there are no wins.
        least = scipy.stats.binom.cdf(0, n, budget) + 0.001
        assert least <= paired_p_value(0, 0, n, budget) <= least + 0.003


def test_for_many_discordant_prompts_it_nears_the_normal_test():
    lost, won, n, budget = 60, 60, 2000, 0.01
    expected = scipy.stats.norm.cdf(float(score(lost, won, n, budget))) + 0.001
    assert paired_p_value(lost, won, n, budget) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("p", "q"), [(0.06, 0.05), (0.02, 0.01), (0.0103, 0.0003)])
def test_simulated_at_the_budget_it_is_wrong_no_more_often_than_it_says(p, q):
    n, budget, draws = 200, 0.01, 4000
    lost, won, _ = np.random.default_rng(3).multinomial(n, [p, q, 1 - p - q], draws).T
    most = reject_up_to(n, budget, int(won.max()))
    wrong = int((lost <= most[won]).sum())
    # 4,000 draws: with a true rate of 0.05, more than 246 happen one time in a thousand.
    assert wrong <= scipy.stats.binom.ppf(0.999, draws, DELTA)


@pytest.mark.parametrize(("n", "p", "q"), [(500, 0.01, 0.01), (700, 0.02, 0.02)])
def test_it_rejects_more_often_than_other_valid_tests(n, p, q):
    budget = 0.01
    lost, won, _ = np.random.default_rng(5).multinomial(n, [p, q, 1 - p - q], 300).T
    ours = (lost <= reject_up_to(n, budget, int(won.max()))[won]).mean()
    assert ours > 0.25
    for rival in RIVALS:
        assert rival(lost, won, n, budget).mean() < ours - 0.05, rival.__name__


@pytest.mark.parametrize(("k", "n", "share"), [(0, 1, 0.5), (0, 299, 0.01), (7, 300, 0.03), (30, 30, 0.9), (3, 9, 1.0)])
def test_the_binomial_p_value_is_scipys(k, n, share):
    assert binomial_p_value(k, n, share) == pytest.approx(scipy.stats.binom.cdf(k, n, share), rel=1e-9)


@pytest.mark.parametrize(("k", "n", "risk"), [(0, 10, 0.05), (4, 300, 0.05), (17, 40, 0.001), (40, 40, 0.05)])
def test_the_upper_bound_of_a_share_is_scipys(k, n, risk):
    found = scipy.stats.binomtest(k, n, alternative="less").proportion_ci(1 - risk, method="exact").high
    assert binomial_upper_bound(k, n, risk) == pytest.approx(found, abs=1e-8)


def exact_p_value(lost, won, n, budget):
    """The supremum over the line p - q = budget by a fine grid, of all counts, up to no limit of p."""
    every = np.array(counts(n))
    as_low = score(every[:, 0], every[:, 1], n, budget) <= score(lost, won, n, budget) + 1e-9
    return max(probability(*every[as_low].T, n, p, p - budget).sum() for p in np.linspace(budget, (1 + budget) / 2, 40))


@pytest.mark.parametrize(("n", "budget"), [(18, 0.05), (25, 0.01), (25, 0.2)])
def test_no_count_gets_less_than_its_exact_p_value_within_the_limit_of_its_losses(n, budget):
    for lost, won in counts(n)[:: 7 if n > 20 else 2]:
        found = paired_p_value(lost, won, n, budget)
        limit = binomial_upper_bound(lost, n, 0.001)
        if limit >= (1 + budget) / 2:  # the limit leaves nothing out, so that the supremum is over the whole line
            assert exact_p_value(lost, won, n, budget) - 1e-9 <= found <= 1
        assert 0.001 <= found <= 1


@pytest.mark.parametrize(
    ("n", "budget", "losses"),
    [(128, 0.05, (0, 3, 64)), (1000, 0.01, (0, 2, 5, 12)), (500, 0.01, (0, 3)), (301, 0.01, (0, 1))],
)
def test_a_rule_that_wins_clearly_has_the_least_p_value_there_is(n, budget, losses):
    for lost in losses:
        won = sorted({*range(min(60, n - lost + 1)), *range(60, n - lost + 1, 40), n - lost})
        p_values = np.array([paired_p_value(lost, w, n, budget) for w in won])
        assert np.all((p_values >= 0.001) & (p_values <= 1))
        assert np.all(np.diff(p_values) <= 0.006 * p_values[:-1] + 2e-5)  # what the search may lie above the supremum
    assert paired_p_value(2, n - 2, n, budget) == pytest.approx(0.001, abs=1e-8)

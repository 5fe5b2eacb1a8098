"""Other valid tests of the hypothesis that the loss is the budget or more, to compare power with.

Each takes counts `[R]` of R sets of n prompts, and says in which of them the hypothesis is rejected at `DELTA`.
"""

import numpy as np
import scipy.stats

DELTA = 0.05


def hoeffding_bentkus(lost, won, n, budget):
    """Of the mean of (d + 1) / 2: what Learn-then-Test (arXiv 2110.01052) proposes for bounded losses."""
    mean, most = ((lost - won) / n + 1) / 2, (budget + 1) / 2
    less = np.minimum(mean, most)
    relative = less * np.log(less / most) + (1 - less) * np.log((1 - less) / (1 - most))
    bentkus = np.e * scipy.stats.binom.cdf(np.ceil(n * mean), n, most)
    return np.minimum(np.exp(-n * relative), bentkus) <= DELTA


def empirical_bernstein(lost, won, n, budget):
    """Maurer and Pontil 2009, of the same mean."""
    mean = ((lost - won) / n + 1) / 2
    variance = ((lost + won) / n - ((lost - won) / n) ** 2) / 4 * n / (n - 1)
    nats = np.log(2 / DELTA)
    return mean + np.sqrt(2 * variance * nats / n) + 7 * nats / (3 * (n - 1)) <= (budget + 1) / 2


def clopper_pearson_split(lost, won, n, budget):
    """An upper limit of P(lost) less a lower limit of P(won), half the risk for each."""
    above = scipy.stats.beta.ppf(1 - DELTA / 2, lost + 1, n - lost)
    below = np.where(won > 0, scipy.stats.beta.ppf(DELTA / 2, np.maximum(won, 1), n - won + 1), 0)
    return above - below <= budget


def losses_alone(lost, won, n, budget):
    """The exact binomial test of P(lost), which forgets the wins."""
    return scipy.stats.binom.cdf(lost, n, budget) <= DELTA


def mixed_bets(lost, won, n, budget):
    """A betting martingale averaged over constant bets, in no order (after Waudby-Smith and Ramdas 2024)."""
    bet = np.linspace(0.005, 0.95, 60) / (1 - budget)
    lost, won = lost[:, None], won[:, None]
    gained = lost * np.log1p(bet * (budget - 1)) + won * np.log1p(bet * (budget + 1))
    gained = gained + (n - lost - won) * np.log1p(bet * budget)
    return np.exp(gained).mean(axis=1) >= 1 / DELTA


def adaptive_bets(lost, won, n, budget, seed=0):
    """The same with each bet from the variance seen so far, stopped at its best moment (their predictable plug-in)."""
    random, rejected = np.random.default_rng(seed), []
    for one_lost, one_won in zip(lost, won, strict=True):
        d = random.permutation(np.repeat([1, -1, 0], [one_lost, one_won, n - one_lost - one_won]))
        seen = np.arange(1, n + 1)
        mean = np.append(0, np.cumsum(d)[:-1]) / seen
        variance = np.maximum((np.append(0, np.cumsum(d * d)[:-1]) + 0.07) / seen - mean**2, 1e-4)
        bet = np.clip(np.sqrt(2 * np.log(1 / DELTA) / (n * variance)), 0, 0.5 / (1 - budget))
        rejected.append(np.cumsum(np.log1p(bet * (budget - d))).max() >= np.log(1 / DELTA))
    return np.array(rejected)


RIVALS = (
    hoeffding_bentkus,
    empirical_bernstein,
    clopper_pearson_split,
    losses_alone,
    mixed_bets,
    adaptive_bets,
)

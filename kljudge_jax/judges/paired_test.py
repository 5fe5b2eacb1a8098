"""An exact test that a rule loses more accuracy than it may, from the answers that it turned wrong and turned right.

Of n prompts `lost` went from right to wrong and `won` from wrong to right: counts of a multinomial with probabilities
p, q and 1 - p - q. The loss of accuracy is p - q, and the hypothesis is p - q >= budget. Pairing pays, since most
prompts are neither: bounds for means of bounded variables, such as Hoeffding-Bentkus, cannot use that.
"""

from __future__ import annotations

import math

import numpy as np

# How far a p-value may lie above the supremum that it stands for, as a share of it and at least; never below it.
_EXCESS, _LEAST_EXCESS = 0.005, 1e-5
# Counts that come with less than this probability, wherever the nuisance parameter lies, are not enumerated; it is
# added to the p-value.
_LEFT_OUT = 1e-9
_CELLS = 48
_CHUNK = 4_000_000


def score(lost, won, n: int, budget: float) -> np.ndarray:
    """The score statistic of p - q = budget, of Nam 1997 and Tango 1998: the lower, the surer that the loss is less.

    (lost - won - n budget) / sqrt(n (p' + q' - budget^2)), p' and q' the likeliest ones where p' - q' = budget. It
    rises with `lost` and falls with `won`.
    """
    lost, won = np.asarray(lost, float), np.asarray(won, float)
    linear = lost + won - budget * (2 * n - lost + won)
    root = np.sqrt(np.maximum(linear**2 + 8 * n * won * budget * (1 - budget), 0.0))
    likeliest = np.maximum((linear + root) / (4 * n), max(0.0, -budget))
    variance = n * (2 * likeliest + budget - budget**2)
    above = lost - won - n * budget
    return above / np.sqrt(np.where(above == 0, 1.0, variance))


def paired_p_value(lost: int, won: int, n: int, budget: float, nuisance_risk: float = 0.001) -> float:
    """The p-value of the hypothesis that the loss p - q is `budget` or more; valid for every n.

    The largest probability, wherever p - q >= budget, of a score as low as the one observed. By the score's
    monotony the supremum lies where p - q = budget (Hsueh, Liu and Chen 2001); p itself is a nuisance there, and is
    searched up to the Clopper-Pearson limit that `lost` sets it, whose risk is added (Berger and Boos 1994). That limit
    depends on `lost` alone, so the p-value never falls when `lost` rises nor rises when `won` does. The search is by
    branch and bound with bounds that hold between its points.

    Args:
      lost, won: prompts on which the rule was wrong and plain decoding right, and the reverse.
      n: all prompts.
      budget: as a share, from -1 to 1.
      nuisance_risk: probability that p lies above its limit.
    """
    low, high = max(0.0, budget), min(binomial_upper_bound(lost, n, nuisance_risk), (1 + budget) / 2)
    if high <= low:
        return nuisance_risk
    some_lost, some_won = _as_low(lost, won, n, budget, high)
    if not len(some_lost):  # a rule that won so many: all scores as low are among the counts that are left out
        return min(1.0, _LEFT_OUT + nuisance_risk)
    fixed = _log_coefficients(some_lost, some_won, n)

    def bound(p, q):
        """P(as low a score) at probabilities p and q, `[C]` each; the more lost or the fewer won, the smaller."""
        step = max(1, _CHUNK // fixed.size)
        parts = [
            _total(fixed, some_lost, some_won, n, p[i : i + step], q[i : i + step]) for i in range(0, len(p), step)
        ]
        return np.concatenate(parts)

    # Spaced evenly in the square root, in which a count's spread is the same everywhere.
    edges = np.linspace(math.sqrt(low), math.sqrt(high), _CELLS + 1) ** 2
    begin, end = edges[:-1], edges[1:]
    attained = closed = 0.0
    while True:
        # Between two points of the line no probability passes that of the least p with the largest q.
        ceiling = bound(begin, end - budget)
        attained = max(attained, float(bound(begin, begin - budget).max()))
        enough = attained + max(_EXCESS * attained, _LEAST_EXCESS)
        closed = max(closed, float(np.max(ceiling[ceiling <= enough], initial=0.0)))
        begin, end = begin[ceiling > enough], end[ceiling > enough]
        if not len(begin):
            return min(1.0, closed + _LEFT_OUT + nuisance_risk)
        middle = (begin + end) / 2
        begin, end = np.concatenate([begin, middle]), np.concatenate([middle, end])


def binomial_p_value(k: int, n: int, share: float) -> float:
    """P(Binomial(n, share) <= k): the p-value of the hypothesis that a share is `share` or more, k of n seen."""
    from scipy import stats

    return float(stats.binom.cdf(k, n, share))


def binomial_upper_bound(k: int, n: int, risk: float) -> float:
    """The Clopper-Pearson upper limit of a share, k of n seen: above it with probability `risk` at most."""
    from scipy import stats

    return 1.0 if k >= n else float(stats.beta.isf(risk, k + 1, n - k))


def _as_low(lost, won, n, budget, most) -> tuple[np.ndarray, np.ndarray]:
    """All counts with a score as low as the observed one's, but for those that are not to be expected at p <= most."""
    wins = np.arange(_ceiling(n, max(most - budget, 0.0)) + 1)
    losses = np.arange(_ceiling(n, most) + 1)
    some_lost, some_won = (x.ravel() for x in np.meshgrid(losses, wins, indexing="ij"))
    # What rounding tells apart has one score.
    as_low = score(some_lost, some_won, n, budget) <= score(lost, won, n, budget) + 1e-9
    as_low &= some_lost + some_won <= n
    return some_lost[as_low].astype(float), some_won[as_low].astype(float)


def _ceiling(n: int, share: float) -> int:
    """A count that a binomial passes with less than half of `_LEFT_OUT`, by Bernstein's inequality."""
    nats = -math.log(_LEFT_OUT / 2)
    return min(n, math.ceil(n * share + nats / 3 + math.sqrt(nats**2 / 9 + 2 * nats * n * share)))


def _log_coefficients(lost, won, n: int) -> np.ndarray:
    """log of n! / (lost! won! (n - lost - won)!)."""
    from scipy.special import gammaln

    return gammaln(n + 1) - gammaln(lost + 1) - gammaln(won + 1) - gammaln(n - lost - won + 1)


def _total(fixed, lost, won, n, p, q) -> np.ndarray:
    """The summed probability of all counts, at each p and q."""
    # What is impossible gets a logarithm that may be multiplied by 0; rounding may have left a share just below 0.
    log_p, log_q, log_rest = (np.log(np.maximum(x, 1e-300))[:, None] for x in (p, q, 1 - p - q))
    return np.exp(fixed + lost * log_p + won * log_q + (n - lost - won) * log_rest).sum(axis=1)

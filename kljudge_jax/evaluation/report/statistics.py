"""Uncertainty of what an experiment finds: intervals of a share, a paired difference and a ratio, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

_Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson 1927; (0, 1) of nothing."""
    from scipy import stats

    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test that two sets of paired outcomes have one success rate."""
    from scipy import stats

    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, tuple[float, float]]:
    """How much larger our share of successes is than theirs on the same cases, and its 95 % interval.

    The interval is Agresti and Min's (2005): Wald's, with half a case added to each cell of the 2 x 2 table, which
    covers well down to small numbers.
    """
    n = len(ours)
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    if n == 0:
        return 0.0, (-1.0, 1.0)
    wider, a, b = n + 2, won + 0.5, lost + 0.5
    centre = (a - b) / wider
    half = _Z95 * math.sqrt(a + b - (a - b) ** 2 / wider) / wider
    return (won - lost) / n, (max(-1.0, centre - half), min(1.0, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): rejecting those below 5 % errs at all with 5 % at most."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of sum(above) / sum(below) over independent pairs, such as answers or turns.

    Student's on the logarithm, with the standard error of the jackknife. Its degrees of freedom are those of
    (sum w)^2 / sum w^2 pairs, w the squares of `above`: a turn that is much longer than the others leaves fewer of
    them. (A percentile bootstrap over 4 turns covers 78 %.) Of a single pair no width is known: both ends are the
    ratio. Of nothing they are 0.
    """
    return _log_interval(np.asarray([above, below], float), [1, -1])


def speed_ratio_interval(
    ours: tuple[Sequence[float], Sequence[float]], theirs: tuple[Sequence[float], Sequence[float]]
) -> tuple[float, float]:
    """The 95 % interval of a ratio of two speeds, those of the totals, that were measured on the same cases.

    Args:
      ours, theirs: what was done and the seconds it took, per case: f64 `[n]` each. Cases are taken as pairs, so that
        what slows both is no doubt; otherwise as `ratio_interval`.
    """
    return _log_interval(np.asarray([*ours, *theirs], float), [1, -1, -1, 1])


def _log_interval(cases: np.ndarray, signs: Sequence[int]) -> tuple[float, float]:
    """Of exp(signs . log(totals)), cases f64 `[S, n]`; the first row says how much a case weighs."""
    from scipy import stats

    totals = cases.sum(axis=1, keepdims=True)
    if not totals.all():
        return 0.0, 0.0
    n, middle, others = cases.shape[1], float(np.dot(signs, np.log(totals[:, 0]))), totals - cases
    if n == 1 or (others <= 0).any():
        return math.exp(middle), math.exp(middle)
    left_out = np.asarray(signs) @ np.log(others)
    error = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    weights = cases[0] ** 2
    freedom = max(1.0, weights.sum() ** 2 / (weights**2).sum() - 1)
    half = float(stats.t.ppf(0.975, freedom)) * error
    return math.exp(middle - half), math.exp(middle + half)

"""Uncertainty of what an experiment finds: intervals of a share, a paired difference and a ratio, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson 1927; (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test that two sets of paired outcomes have one success rate."""
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    discordant = won + lost
    tail = sum(math.comb(discordant, k) for k in range(min(won, lost) + 1)) / 2**discordant
    return min(1.0, 2 * tail)


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


def ratio_interval(above: Sequence[float], below: Sequence[float], draws: int = 2000, seed: int = 0):
    """The 95 % percentile-bootstrap interval of sum(above) / sum(below) over resampled pairs, such as answers."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    if above.size == 0 or below.sum() == 0:
        return 0.0, 0.0
    picks = np.random.default_rng(seed).integers(0, above.size, (draws, above.size))
    ratios = above[picks].sum(axis=1) / np.maximum(below[picks].sum(axis=1), 1e-12)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def speed_ratio_interval(
    ours: tuple[Sequence[float], Sequence[float]],
    theirs: tuple[Sequence[float], Sequence[float]],
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of a ratio of two speeds that were measured on the same cases.

    Args:
      ours, theirs: what was done and the seconds it took, per case: f64 `[n]` each. Cases are resampled whole.
      draws, seed: of the bootstrap.
    """
    counts = [np.asarray(x, float) for x in (*ours, *theirs)]
    picks = np.random.default_rng(seed).integers(0, counts[0].size, (draws, counts[0].size))
    done, took, done_there, took_there = (x[picks].sum(axis=1) for x in counts)
    low, high = np.quantile(done / took / (done_there / took_there), [0.025, 0.975])
    return float(low), float(high)

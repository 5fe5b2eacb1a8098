"""Uncertainty of what an experiment finds: intervals of a share and of a ratio, and a paired test."""

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


def ratio_interval(above: Sequence[float], below: Sequence[float], draws: int = 2000, seed: int = 0):
    """The 95 % percentile-bootstrap interval of sum(above) / sum(below) over resampled pairs, such as answers."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    if above.size == 0 or below.sum() == 0:
        return 0.0, 0.0
    picks = np.random.default_rng(seed).integers(0, above.size, (draws, above.size))
    ratios = above[picks].sum(axis=1) / np.maximum(below[picks].sum(axis=1), 1e-12)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)

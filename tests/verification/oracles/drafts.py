"""Several drafts of one prefix, and the definitions of the rules that choose among them: K-SEQ, multi-path blocks."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
from transcription import softmax

from kljudge_jax.verification import KSequential, MultiPathBlock
from oracles.base import RESOLUTION, Expected, Oracle
from oracles.block import by_blocks

# Float32 orders the tokens by log p / q in steps of less than this, for vocabularies as small as those of cases.
_STEP = 5e-5

# Of a sum of probabilities in float32.
_ROUNDING = 1.2e-7

# Log-ratios beyond it are alike to `gbv`.
_REACH = 16.0


@dataclasses.dataclass
class Drafts:
    """D drafts of up to K tokens, with the logits after each prefix; two drafts that begin alike have the same."""

    tokens: list[tuple[int, ...]]
    length: int
    draft: dict[tuple[int, ...], np.ndarray]
    target: dict[tuple[int, ...], np.ndarray]
    greedy: bool

    def p(self, prefix):
        """The target's next token after a prefix; when greedy its argmax."""
        logits = self.target[prefix]
        return np.eye(len(logits))[int(np.argmax(logits))] if self.greedy else softmax(logits)

    def q(self, prefix, token):
        """The draft's; when greedy the token that it has drafted there."""
        logits = self.draft[prefix]
        return np.eye(len(logits))[token] if self.greedy else softmax(logits)

    def first(self, prefix):
        """The first draft that begins with a prefix."""
        return next(j for j, d in enumerate(self.tokens) if d[: len(prefix)] == prefix)


def k_sequential(case: Drafts) -> Expected:
    """SpecTr's K-SEQ. Where p is nearly q hardly anything says which rho it is: what hangs on that is undecided."""
    found, *others = (_k_sequential(case, rounding) for rounding in (0.0, -_ROUNDING, _ROUNDING))
    off = max(np.abs(other.lengths - found.lengths).max() for other in others)
    return dataclasses.replace(found, slack=0.0 if off > RESOLUTION else 1.0)


def _k_sequential(case: Drafts, rounding: float) -> Expected:
    """At every prefix the tokens of the drafts that have it, in turn."""
    lengths, corrections = np.zeros((len(case.tokens), case.length + 1)), {}

    def at(prefix, reached):
        j, n = case.first(prefix), len(prefix)
        alive = [d for d in case.tokens if d[:n] == prefix]
        p = case.p(prefix)
        if len(alive[0]) == n:
            lengths[j, n] += reached
            corrections[j, n] = p, 1.0
            return
        q = case.q(prefix, alive[0][n])
        rho = _rho(p, q, len(alive), rounding)
        taken: dict[int, float] = {}
        for d in alive:
            token = d[n]
            accept = min(1.0, p[token] / (rho * q[token])) if p[token] > 0 else 0.0
            taken[token] = taken.get(token, 0.0) + reached * accept
            reached *= 1 - accept
        lengths[j, n] += reached
        kept = np.minimum(q, p / rho)
        beta = kept.sum()
        weights = np.maximum(p - kept * ((1 - (1 - beta) ** len(alive)) / beta if beta > 0 else 0.0), 0.0)
        total = weights.sum()
        corrections[j, n] = (weights / total, total) if total > 0 else (p, 1.0)
        for token, chance in taken.items():
            if chance > 0:
                at((*prefix, token), chance)

    at((), 1.0)
    return Expected(lengths, corrections)


def _rho(p, q, count, rounding):
    """The least rho of [1, k] for which 1 - (1 - beta)^k <= rho beta, by halving; `rounding` is added to the latter."""

    def enough(rho):
        beta = min(1.0, np.minimum(q, p / rho).sum())
        return 1 - (1 - beta) ** count <= rho * beta * (1 + 1e-12) + rounding

    low, high = 1.0, float(count)
    if enough(low):
        return low
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def multi_path(case: Drafts) -> Expected:
    """The greatest of D drafts, and block verification against what the greatest of D draws is distributed as.

    The drafts of q in their order share [0, 1] by their probabilities, so that those with a prefix have a part of it
    from `low` to `high`; the greatest of D begins with it with probability high^D - low^D. In fractions, for the parts
    are small.
    """
    prefix, rows, slack = _greatest(case)
    p = np.array([case.p(prefix[:n]) for n in range(len(prefix) + 1)])
    q = np.array(rows).reshape(len(rows), p.shape[1])
    found, residuals, nothing = by_blocks(prefix, p, q, case.length)
    lengths, corrections, j = np.zeros((len(case.tokens), case.length + 1)), {}, case.first(prefix)
    lengths[j] = found
    for n, row in enumerate([*residuals, p[-1]]):
        total = row.sum()
        corrections[j, n] = (row / total, total) if total > 0 else (p[n], 1.0)
    return Expected(lengths, corrections, 1.0 if case.greedy else min(slack, nothing))


def _greatest(case: Drafts):
    """The greatest draft, the distributions of its tokens, and how near tokens are to a tie."""
    drafts, slack, rows = len(case.tokens), 1.0, []
    low, high, prefix, alive = Fraction(0), Fraction(1), (), list(case.tokens)
    while len(alive[0]) > len(prefix):
        q = case.q(prefix, alive[0][len(prefix)])
        places, near = _ordered(case.p(prefix), q)
        slack = min(slack, near)
        parts = [Fraction(float(x)) for x in q]
        ends, at = {}, low
        for v in places:
            ends[v] = at, at + (high - low) * parts[v] / sum(parts)
            at = ends[v][1]
        before = high**drafts - low**drafts
        rows.append([float((ends[v][1] ** drafts - ends[v][0] ** drafts) / before) for v in range(len(q))])
        token = max((d[len(prefix)] for d in alive), key=places.index)
        low, high = ends[token]
        alive = [d for d in alive if d[len(prefix)] == token]
        prefix = (*prefix, token)
    return prefix, rows, slack


def _ordered(p, q):
    """The tokens from the least to the greatest ratio p / q, and how near two that can be drawn are to a tie."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.clip(np.where(q > 0, np.log(p) - np.log(q), -_REACH), -_REACH, _REACH)
    places = sorted(range(len(q)), key=lambda v: (gain[v], v))
    steps = [b - a for a, b in zip(*(gain[places][i : len(q) - 1 + i] for i in (0, 1)), strict=True)]
    close = [
        step
        for step, v, w in zip(steps, places, places[1:], strict=False)
        if q[v] > 0 and q[w] > 0 and step < _STEP and math.isfinite(step) and abs(gain[v]) < _REACH
    ]
    return places, 0.0 if close else 1.0


ORACLES = [
    *(Oracle(KSequential(drafts), k_sequential) for drafts in (2, 3)),
    *(Oracle(MultiPathBlock(drafts), multi_path) for drafts in (2, 3)),
]

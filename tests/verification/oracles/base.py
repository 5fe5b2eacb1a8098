"""What an oracle is: a rule's definition in float64, one case at a time, written without the package's arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from transcription import softmax

# Nearer than this to a threshold, float32 may decide either way: the case is undecided. It is some twenty roundings of
# the logits that cases have.
RESOLUTION = 1e-5


@dataclasses.dataclass
class Case:
    """One draft of K tokens, float64: logits of the first `count` places, and of one more of the target's."""

    tokens: np.ndarray
    count: int
    length: int
    draft: np.ndarray
    target: np.ndarray
    raw_draft: np.ndarray
    raw_target: np.ndarray
    greedy: bool
    position: int
    section: np.ndarray
    carry: float
    judged: np.ndarray
    draft_hidden: np.ndarray
    target_hidden: np.ndarray

    @property
    def vocab(self) -> int:
        return self.target.shape[1]

    def positions(self) -> list[Position]:
        """The places of its draft tokens."""
        p, q, raw_p, raw_q = map(softmax, (self.target, self.draft, self.raw_target, self.raw_draft))
        return [Position(self, i, p[i], q[i], raw_p[i], raw_q[i]) for i in range(self.count)]


@dataclasses.dataclass
class Position:
    """Draft place i of a case: p and q as they were processed for sampling, and of the raw logits."""

    case: Case
    i: int
    p: np.ndarray
    q: np.ndarray
    raw_p: np.ndarray
    raw_q: np.ndarray

    @property
    def token(self) -> int:
        return int(self.case.tokens[self.i])

    @property
    def greedy(self) -> bool:
        return self.case.greedy

    @property
    def raw_logits(self) -> np.ndarray:
        return self.case.raw_target[self.i]

    @property
    def strict(self) -> float:
        """The probability that the strict rule accepts."""
        if self.greedy:
            return float(int(np.argmax(self.case.target[self.i])) == self.token)
        p, q = self.p[self.token], self.q[self.token]
        if p == 0:
            return 0.0
        return 1.0 if q == 0 else min(1.0, p / q)


@dataclasses.dataclass
class Expected:
    """What a definition says of a case.

    Attributes:
      lengths: the probability of each accepted length, `[K + 1]`; of several drafts `[D, K + 1]`, at the first draft
        that begins with what is accepted.
      corrections: by what `lengths` is indexed with, the distribution of the next token, `[V]` each, and the weight
        that it was made of: float32 knows it to so many digits less.
      slack: how far the case is from the nearest threshold, in units of what is compared.
      carry: what the rule remembers after a greedy case, if it has a memory.
    """

    lengths: np.ndarray
    corrections: dict[Any, tuple[np.ndarray, float]]
    slack: float = 1.0
    carry: float | None = None


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A rule at some numbers, and its definition.

    Attributes:
      rule: the package's.
      expected: the definition: a `Case`, or `drafts.Drafts` where the rule chooses among several drafts.
      modes: "greedy", "sampling".
      reads: the fields of `VerifyInputs`, of those that need not be given, that the rule is given here.
      written_in: the file of the definition.
    """

    rule: Any
    expected: Callable[[Any], Expected]
    modes: tuple[str, ...] = ("greedy", "sampling")
    reads: tuple[str, ...] = ()
    written_in: str = ""

    @property
    def several(self) -> bool:
        return getattr(self.rule, "scorer", "") == "several drafts"


def excess(position: Position) -> np.ndarray:
    """The weights of the strict rule's correction."""
    return np.maximum(position.p - position.q, 0.0)


def target(position: Position) -> np.ndarray:
    """Those of a correction that is drawn from the target."""
    return position.p


Accept = Callable[[Position], tuple[float, float]]
Residual = Callable[[Position], np.ndarray]


def token_by_token(accept: Accept, residual: Residual = excess, first: int = 0) -> Callable[[Case], Expected]:
    """A definition that keeps the leading run of accepted tokens.

    Args:
      accept: of a place, the probability that its token is accepted once all before it were, and how far the place is
        from the nearest threshold.
      residual: of a place whose token is rejected when sampling, the weights of the token in its stead.
      first: so many first tokens of an answer are the strict rule's.
    """

    def expected(case: Case) -> Expected:
        positions = case.positions()
        ruled = [case.position + i >= first for i in range(case.count)]
        decided = [accept(place) if ours else (place.strict, 1.0) for place, ours in zip(positions, ruled, strict=True)]
        lengths, reached = np.zeros(case.length + 1), 1.0
        for i, (probability, _) in enumerate(decided):
            lengths[i] = reached * (1 - probability)
            reached *= probability
        lengths[case.count] = reached
        weights = [
            (residual if ours else excess)(place) if not case.greedy else place.p
            for place, ours in zip(positions, ruled, strict=True)
        ]
        slack = min((near for _, near in decided), default=1.0)
        return Expected(lengths, corrected(case.target, weights, case.greedy), slack)

    return expected


def corrected(logits: np.ndarray, weights: list[np.ndarray], greedy: bool) -> dict[Any, tuple[np.ndarray, float]]:
    """The token after each length: by the weights of a rejected place, the target's own after the draft or where they
    are empty, and the argmax when greedy."""
    p, found = softmax(logits), {}
    for n, row in enumerate([*weights, p[-1]]):
        total = float(np.sum(row))
        if greedy:
            found[n] = np.eye(len(row))[int(np.argmax(logits[n]))], 1.0
        else:
            found[n] = (p[n], 1.0) if total == 0 else (row / total, total)
    return found

"""A relaxed rule's threshold from a quality budget, with a guarantee: Learn-then-Test over a fixed sequence.

Thresholds are tested from the strictest on, each against the hypothesis that the rule loses the budget or more, at
level delta, up to the first that cannot be rejected. To promise too much, the first threshold of the sequence that does
lose so much has to be rejected, and that happens with probability delta at most, however many thresholds there are and
however they hang together. It needs p-values that are valid for every n, and prompts that are drawn independently from
the source that the promise is about.

Source: Angelopoulos, Bates, Candes, Jordan and Lei, arXiv 2110.01052 (paper), with the exact p-values of
`judges.paired_test` in place of its Hoeffding-Bentkus ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from kljudge_jax.judges.paired_test import binomial_p_value, binomial_upper_bound, paired_p_value

# The part of delta that is spent on bounding the paired test's nuisance parameter.
_NUISANCE_SHARE = 0.02
_MOST_PROMPTS = 100_000
_BOUND_WIDTH = 1e-4


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a rule did to n answers of the target.

    Attributes:
      n: prompts.
      lost: those that plain decoding has right and the rule wrong; without answers to check, those where they disagree.
      won: those that the rule has right and plain decoding wrong; None where the loss is disagreement, which nothing
        makes up for.
    """

    n: int
    lost: int
    won: int | None

    @classmethod
    def of(cls, plain: Sequence[bool], rule: Sequence[bool]) -> Outcome:
        """Of paired right answers, plain decoding's and the rule's."""
        lost = sum(a and not b for a, b in zip(plain, rule, strict=True))
        won = sum(b and not a for a, b in zip(plain, rule, strict=True))
        return cls(len(plain), lost, won)

    @property
    def loss(self) -> float:
        """The share that was lost, net."""
        return (self.lost - (self.won or 0)) / self.n


def p_value(outcome: Outcome, budget: float, delta: float = 0.05) -> float:
    """The p-value of the hypothesis that the rule loses `budget` or more; valid for every n.

    Args:
      outcome: of independent prompts.
      budget: a share, such as 0.01.
      delta: the level it will be compared with, of which the paired test spends a small part beforehand.
    """
    if outcome.won is None:
        return binomial_p_value(outcome.lost, outcome.n, budget)
    return paired_p_value(outcome.lost, outcome.won, outcome.n, budget, _NUISANCE_SHARE * delta)


def fixed_sequence(outcomes: Iterable[Outcome], budget: float, delta: float = 0.05) -> Iterator[float]:
    """The p-values of thresholds tested from the strictest on, up to and with the first above `delta`.

    What is at most `delta` is promised. Outcomes after the first that is not are never asked for, so they may be made
    as they are drawn. The order has to be fixed before any answer is seen.
    """
    for outcome in outcomes:
        p = p_value(outcome, budget, delta)
        yield p
        if p > delta:
            return


def upper_bound(outcome: Outcome, delta: float = 0.05) -> float:
    """What the rule loses at most, a share: above it with probability `delta` at most. One rule at a time."""
    if outcome.won is None:
        return binomial_upper_bound(outcome.lost, outcome.n, delta)
    low, high = outcome.loss, 1.0
    while high - low > _BOUND_WIDTH:
        # Doubled from the estimate at first: tests at far budgets are the slow ones.
        middle = min((low + high) / 2, low + 2 * max(low - outcome.loss, 4 / outcome.n))
        low, high = (low, middle) if p_value(outcome, middle, delta) <= delta else (middle, high)
    return high


def loss_interval(outcome: Outcome, confidence: float = 0.95) -> tuple[float, float]:
    """An interval of the loss that holds for every n, each side with half the risk."""
    risk = (1 - confidence) / 2
    above = upper_bound(outcome, risk)
    if outcome.won is None:
        return 1 - binomial_upper_bound(outcome.n - outcome.lost, outcome.n, risk), above
    return -upper_bound(Outcome(outcome.n, outcome.won, outcome.lost), risk), above


def smallest_set(budget: float, delta: float = 0.05, paired: bool = True) -> int:
    """The fewest prompts on which `budget` can be promised: those of a rule that changes no answer at all."""
    won = 0 if paired else None
    n = math.ceil(math.log(delta) / math.log1p(-budget)) if budget < 1 else 1
    while p_value(Outcome(n, 0, won), budget, delta) > delta:
        n += 1
    return n


def prompts_needed(outcome: Outcome, budget: float, delta: float = 0.05) -> int | None:
    """About how many prompts would do for the promise, if they went in the proportions of these.

    Returns:
      None where these lose the budget or more, or where even 100,000 would not do.
    """
    if outcome.loss >= budget:
        return None

    def enough(n: int) -> bool:
        scale = n / outcome.n
        won = None if outcome.won is None else math.floor(outcome.won * scale)
        return p_value(Outcome(n, math.ceil(outcome.lost * scale), won), budget, delta) <= delta

    low, high = 0, outcome.n
    while not enough(high):
        low, high = high, 2 * high
        if low >= _MOST_PROMPTS:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high

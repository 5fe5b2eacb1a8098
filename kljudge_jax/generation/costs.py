"""What a cycle with each number of draft tokens costs: as the models' sizes say it, or as a few cycles show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np

from kljudge_jax.core.controller import MEASURED, SCORING_COST, Adaptive
from kljudge_jax.models.eagle3 import Eagle3Head
from kljudge_jax.models.leaves import parameter_bytes
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.parallel.hosts import agreed

# A length is timed in so many blocks of so many cycles, of which the fastest counts.
_ROUNDS, _CYCLES = 2, 2
# A row whose last tokens cut a draft short spoils a block; after so many in vain a program is taken as its sizes say.
_PATIENCE = 4


def bytes_read(model: Any) -> int:
    """The bytes of the weights that one token multiplies: all but an embedding table that is not the head as well.

    Of a head that is cut to some tokens its own rows are read, and a table that was tied to it is only gathered from.
    So is a table of an `Eagle3Head`'s own.
    """
    gathered = isinstance(model, Transformer | Eagle3Head) and model.head is not None
    return parameter_bytes(model) - (parameter_bytes(model.embedding) if gathered else 0)


def drafter_reads(pair: Any, drafter: Any, length: int) -> list[tuple[Any, int]]:
    """The weights that a drafter reads in a cycle, and how often: for a draft of `length` tokens, and as it is told of
    the target's pass.

    A drafter says it by `reads(pair)`, what one more token takes, and where these differ from that or are something,
    by `reads_first(pair)`, the first one, `tokens_per_pass`, how many share one pass, and `observes(pair)`.
    """
    more = drafter.reads(pair) if hasattr(drafter, "reads") else pair.draft
    passes = -(-length // getattr(drafter, "tokens_per_pass", 1))
    found = [(drafter.observes(pair), 1)] if hasattr(drafter, "observes") else []
    if passes and hasattr(drafter, "reads_first"):
        found.append((drafter.reads_first(pair), 1))
        passes -= 1
    return [*found, (more, passes)] if passes else found


def draft_cost(pair: Any, drafter: Any) -> float:
    """What one more draft token costs, as a share of a cycle of plain decoding, by the weights that they read."""
    shared = getattr(drafter, "tokens_per_pass", 1)
    plain, one, more = (
        sum(times * bytes_read(weights) for weights, times in drafter_reads(pair, drafter, passes * shared))
        for passes in (0, 1, 2)
    )
    return (more - one) / shared / max(bytes_read(pair.target) + plain, 1)


@dataclasses.dataclass
class CycleCosts:
    """The table that an adaptive length decides by, and where it is to be measured, what is to be timed next.

    A plain cycle and the shortest draft are timed in turns; then the longest, if the shortest paid for itself. What
    lies between or beyond is on the line through them.
    """

    adaptive: Adaptive
    estimate: float
    open: bool
    seconds: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    warm: bool = False
    paid: bool = False
    vain: int = 0

    @classmethod
    def of(cls, program: Hashable, adaptive: Adaptive, estimate: float) -> CycleCosts:
        """Those of a program, measured once in this process; `estimate` is what one more draft token costs by size."""
        if adaptive.cost != MEASURED:
            return cls(adaptive, estimate, False)
        return _known.setdefault(program, cls(adaptive, estimate, True))

    def next(self) -> tuple[int, int] | None:
        """The length that the next block should have, and its cycles; None when all is known that will be."""
        base, longest = self.adaptive.minimum, self.adaptive.maximum
        if self.open and not self.warm:
            return base, 1
        plan = [base, min(max(self.adaptive.probe, base + 1), longest)] * _ROUNDS + [longest] * (
            self.paid and longest not in self.seconds
        )
        for i, length in enumerate(plan):
            if self.open and len(self.seconds.get(length, [])) < plan[: i + 1].count(length):
                return length, _CYCLES
        self.open = False
        return None

    def took(self, length: int, drafted: np.ndarray, asked: int, tokens: float, seconds: float) -> None:
        """A block that was asked for ran.

        Args:
          length: of its drafts.
          drafted: int `[cycles]`, the longest draft of each of its cycles.
          asked: how many cycles it should have had.
          tokens: committed in a cycle by the slowest row.
          seconds: what it took.
        """
        # Hosts agree on whole numbers: microseconds.
        seconds = max(agreed(int(seconds * 1e6)), 1) / 1e6
        if len(drafted) != asked or not (drafted == length).all():
            self.vain += 1
            self.open = self.vain < _PATIENCE
        elif not self.warm:
            self.warm = True
        else:
            self.seconds.setdefault(length, []).append(seconds / asked)
            base = self.seconds.get(self.adaptive.minimum, [])
            self.paid |= length > self.adaptive.minimum and tokens * min(base, default=0.0) > seconds / asked

    @property
    def measured(self) -> bool:
        """Whether the table is what cycles took."""
        return len(self.seconds) > 1

    def table(self) -> np.ndarray:
        """What a cycle with n draft tokens costs, f32 `[K + 1]`; the unit is the shortest that is allowed."""
        lengths = np.arange(self.adaptive.maximum + 1)
        if not self.measured:
            return (1 + self.estimate * lengths).astype(np.float32)
        known = sorted(self.seconds)
        cost = np.maximum.accumulate([min(self.seconds[n]) for n in known])
        cost = cost / cost[0]
        slope = (cost[-1] - 1) / (known[-1] - known[0])
        beyond = slope * np.maximum(lengths - known[-1], 0)
        return (np.interp(lengths, known, cost) + beyond).astype(np.float32)

    def only(self, length: int) -> np.ndarray:
        """A table under which every cycle has that length."""
        return np.where(np.arange(self.adaptive.maximum + 1) == length, 1, np.inf).astype(np.float32)


def estimate(pair: Any, drafter: Any, adaptive: Adaptive, drafts: int, positions: int) -> float:
    """What one more draft token costs, as a share of a plain cycle, by size or as it was given."""
    if isinstance(adaptive.cost, int | float):
        return float(adaptive.cost)
    return drafts * draft_cost(pair, drafter) + positions * SCORING_COST


# What was measured, by program: it holds for every run of it in this process.
_known: dict[Hashable, CycleCosts] = {}

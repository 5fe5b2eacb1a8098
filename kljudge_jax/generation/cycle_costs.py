"""What a cycle costs with each number of draft tokens: as the models' sizes say it, or as blocks of cycles show it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable

import numpy as np

from kljudge_jax.core.controller import CATCH_UP, MEASURED, Adaptive, Costs, allowance
from kljudge_jax.parallel.hosts import agreed

# A length is timed in so many blocks of so many cycles, of which the best counts. They are few, since what is drafted
# to be timed may be in vain.
_ROUNDS, _CYCLES = 2, 2
# Cycles of the shortest length cost nothing extra, so one more block of them takes about this long, in up to so many.
_SECONDS, _MOST = 0.05, 8
# A row whose last tokens cut a draft short spoils a block; after so many in vain a length is given up.
_PATIENCE = 4
# The part of what a run may lose that may go into timing. Until a length was timed in a whole block, the first draft of
# a run may take all of it: one that may try none would never learn that it pays.
_TIMING = 0.5
# No draft step is faster than this share of what its weights say: a table that has it cheaper shows noise.
_FASTEST = 0.5


@dataclasses.dataclass
class _Timed:
    """The blocks of one length."""

    seconds: list[float] = dataclasses.field(default_factory=list)  # a block
    vain: int = 0

    @property
    def open(self) -> bool:
        return len(self.seconds) < _ROUNDS and self.vain < _PATIENCE


class CycleCosts:
    """The table that an adaptive length decides by, and where it is to be measured, the lengths to be timed next.

    Lengths that were not timed cost what those around them let expect. A draft is timed where a run may lose what it is
    expected to cost, and more of them until half of what it may lose is lost; the estimate, or what is known by then,
    serves for the rest. With `Adaptive.minimum` from 1 on there is no such limit.
    """

    def __init__(self, adaptive: Adaptive, estimate: float, draft: float, batch: int):
        """`estimate` is what one more draft token costs, as a share of a cycle without any; `draft` the part of it that
        goes into the draft, by the sizes of the models; a run has `batch` rows."""
        self._lengths = np.arange(adaptive.maximum + 1)
        self._estimate, self._draft = estimate, draft
        widths = np.array(adaptive.widths())
        self._next = widths[np.searchsorted(widths, self._lengths)]
        plan = [w for w in adaptive.widths() if w >= adaptive.minimum] if adaptive.cost == MEASURED else []
        # The shortest, then the cheapest draft, then the two that bound the slope best.
        plan = plan[:2] + plan[:1:-1]
        self._timed: dict[int, _Timed] = {length: _Timed() for length in plan}
        self._limited, self._may_lose = adaptive.minimum == 0, allowance(batch)
        self._base = plan[0] if plan else 0
        self._cycle: float | None = None  # seconds of a cycle of the shortest length
        self._warm = False  # whether a block of the shortest has run
        self._first: tuple[int, float] | None = None  # the length of a lone cycle with a draft, and the least it took
        self._tried = False  # whether this run had a draft timed
        self._idle = 0  # cycles since a draft
        self._lost = 0.0
        self._net: dict[int, float] = {}  # what a cycle of each length lost when it was timed last

    @classmethod
    def of(cls, program: Hashable, adaptive: Adaptive, estimate: float, draft: float, batch: int) -> CycleCosts:
        """Those of a program, measured once in this process."""
        if adaptive.cost != MEASURED:
            return cls(adaptive, estimate, draft, batch)
        costs = _known.setdefault(program, cls(adaptive, estimate, draft, batch))
        # What one run could not afford to time another may; and its draft begins with nothing to catch up.
        costs._lost, costs._net, costs._idle, costs._tried = 0.0, {}, 0, False
        return costs

    def next(self) -> tuple[int, int] | None:
        """The length that the next block should have, and its cycles; None when all is known that will be."""
        for length, timed in self._timed.items():
            if not timed.open:
                if length == self._base and self._cycle is None and timed.seconds:
                    return length, int(np.clip(_SECONDS * _CYCLES / min(timed.seconds), 2 * _CYCLES, _MOST))
                continue
            if length == self._base:
                return length, _CYCLES
            cost = float(self.table()[length] - 1)
            loss = max(self._net.get(length, cost), 0.0)
            known = any(other.seconds for w, other in self._timed.items() if w != self._base)
            most = self._may_lose * (_TIMING if known or self._tried else 1.0)
            # A run that can't afford a block may try one cycle: what an earlier one took may have been bad luck.
            blocks = ([] if self._first is None else [_CYCLES]) + ([] if known or self._tried else [1])
            for cycles in blocks if self._cycle is not None else []:
                if not self._limited or self._lost + cycles * loss + self._caught_up() <= most:
                    return length, cycles
        return None

    def took(self, length: int, drafted: np.ndarray, tokens: float, seconds: float) -> float:
        """A block ran with the length asked for, drafted int `[cycles]` at the most in each cycle, and committed
        `tokens` in a cycle. Returns what was lost to it, in cycles of the shortest length."""
        cycles, timed = len(drafted), self._timed[length]
        if not cycles:
            timed.vain += 1
            return 0.0
        # Hosts agree on whole numbers: microseconds.
        seconds = max(agreed(int(seconds * 1e6)), 1) / 1e6
        asked = bool((drafted == length).all())
        if length == self._base:
            self._idle += cycles
            if not asked:
                timed.vain += 1
            elif not self._warm:
                self._warm = True
            elif not timed.open:
                # What a block costs by itself falls out of the difference to a shorter one.
                alone = (seconds - min(timed.seconds)) / (cycles - _CYCLES) if cycles > _CYCLES else 0.0
                self._cycle = max(alone, seconds / cycles / 2)
            elif cycles == _CYCLES:
                timed.seconds.append(seconds)
            else:
                timed.vain += 1
            if self._cycle is None and timed.seconds and timed.vain >= _PATIENCE:
                # No long block was whole: what a block costs by itself is then in every cycle.
                self._cycle = min(timed.seconds) / _CYCLES
            return 0.0
        if self._cycle is None:  # none of the shortest could be timed
            timed.vain += 1
            return 0.0
        took = seconds / self._cycle / cycles
        self._lost += (took - tokens) * cycles
        lone, caught_up = cycles == 1 and not self._tried, self._caught_up()
        self._tried, self._idle = True, 0
        if asked and lone:
            # It also takes what the draft was not asked for until then, so it counts only where there is no other.
            if self._first is None or took < self._first[1]:
                self._first = length, took
            took -= caught_up
        elif asked and cycles == _CYCLES:
            timed.seconds.append(seconds)
        else:
            timed.vain += 1
        self._net[length] = took - tokens
        return seconds / self._cycle - tokens * cycles

    @property
    def measured(self) -> bool:
        """Whether the table is what cycles took, at least with one length of draft."""
        return len(self._found()) > 1

    def table(self) -> np.ndarray:
        """What a cycle with n draft tokens costs, f32 `[K + 1]`: the shortest that is allowed is the unit."""
        found = self._found()
        if len(found) < 2:
            return (1.0 + self._estimate * self._lengths).astype(np.float32)
        lengths = sorted(found)
        last = lengths[-1]
        costs = np.maximum.accumulate([found[length] for length in lengths])
        slope = (costs[-1] - 1) / (last - self._base)
        table = np.interp(self._lengths, lengths, costs) + slope * np.maximum(self._lengths - last, 0)
        # Between two widths the pass is as dear as at the next one; only the draft is shorter.
        saved = min(self._draft, slope) * (self._next - self._lengths)
        table = np.maximum(table, table[self._next] - saved)
        floor = 1 + _FASTEST * self._draft * np.maximum(self._lengths - self._base, 0)
        return np.maximum(table, floor).astype(np.float32)

    def costs(self, spent: float = 0.0, forced: int = -1, together: bool = True) -> Costs:
        """What the device decides by: the table, and the fields of `Costs` that the caller knows."""
        return Costs(
            self.table(), np.float32(self._catch_up()), np.float32(spent), np.int32(forced), np.asarray(together)
        )

    def _catch_up(self) -> float:
        """What a draft's pass over tokens that it was not asked for costs."""
        table = self.table()
        token = float(table[-1] - table[0]) / (len(table) - 1)
        step = min(self._draft, token)
        # A position costs the draft what it costs the target, in proportion to its size.
        return step + (CATCH_UP - 1) * self._draft * (token - step)

    def _caught_up(self) -> float:
        """What the next draft takes first, of what it was not asked for."""
        return self._catch_up() * math.ceil(self._idle / CATCH_UP)

    def _found(self) -> dict[int, float]:
        """The cost of each length that was timed, against the shortest: differences of blocks of as many cycles, so
        that what a block costs by itself falls out."""
        if self._cycle is None:
            return {}
        base = min(self._timed[self._base].seconds)
        first = {} if self._first is None else dict([self._first])
        return first | {
            length: 1 + (min(timed.seconds) - base) / (_CYCLES * self._cycle)
            for length, timed in self._timed.items()
            if timed.seconds
        }


# What was measured, by program: it holds for every run of it in this process.
_known: dict[Hashable, CycleCosts] = {}

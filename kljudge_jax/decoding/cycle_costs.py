"""What a cycle costs with each number of draft tokens: as the models' sizes say it, or as blocks of cycles show it."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from kljudge_jax.decoding.adaptive import MEASURED, Adaptive
from kljudge_jax.parallel.hosts import agreed

# A block that is timed takes about this long, in this many cycles at the least and the most.
_SECONDS = 0.1
_FEWEST, _MOST = 2, 16
# The best of so many blocks of a length counts. A row whose last tokens cut a draft short spoils a block; after so many
# in vain a length is given up.
_ROUNDS = 2
_PATIENCE = 4

# What was measured, by program: it holds for every run of it in this process.
_known: dict[Hashable, CycleCosts] = {}


class CycleCosts:
    """The table that an adaptive length decides by, and where it is to be measured, the lengths to be timed next.

    Lengths that no target pass is compiled for cost what lies between those around them.
    """

    def __init__(self, adaptive: Adaptive, estimate: float):
        """`estimate` is what one more draft token costs, as a share of a cycle without any."""
        self._lengths = np.arange(adaptive.maximum + 1)
        self._estimate = (1.0 + estimate * self._lengths).astype(np.float32)
        measured = adaptive.cost == MEASURED
        # The longest first: its block, which is not counted, warms up all that the others need.
        self._plan = [w for w in adaptive.widths() if w >= adaptive.minimum][::-1] if measured else []
        self._seconds: dict[int, list[float]] = {length: [] for length in self._plan}
        self._vain = dict.fromkeys(self._plan, 0)
        self._warm = False

    @classmethod
    def of(cls, program: Hashable, adaptive: Adaptive, estimate: float) -> CycleCosts:
        """Those of a program, measured once in this process."""
        if adaptive.cost != MEASURED:
            return cls(adaptive, estimate)
        return _known.setdefault(program, cls(adaptive, estimate))

    def next(self) -> tuple[int, int] | None:
        """The length that the next block should have, and its cycles; None when all is known."""
        open_ = [w for w in self._plan if len(self._seconds[w]) < _ROUNDS and self._vain[w] < _PATIENCE]
        if not open_:
            return None
        length = min(open_, key=lambda w: len(self._seconds[w]) + self._vain[w])  # in turns
        known = self._seconds[length]
        return length, int(np.clip(_SECONDS / min(known), _FEWEST, _MOST)) if known else _FEWEST

    def took(self, length: int, drafted: np.ndarray, seconds: float) -> None:
        """A block ran with the length asked for, and drafted int `[cycles]` at the most in each cycle."""
        if not self._warm:
            self._warm = True
        elif len(drafted) and (drafted == length).all():
            # Hosts agree on whole numbers, which JAX keeps in 32 bits: microseconds.
            self._seconds[length].append(max(agreed(int(seconds * 1e6)), 1) / 1e6 / len(drafted))
        else:
            self._vain[length] += 1

    @property
    def measured(self) -> bool:
        """Whether the table is what cycles took."""
        return bool(self._plan) and self.next() is None and len(self._found()) > 1

    def table(self) -> np.ndarray:
        """What a cycle with n draft tokens costs, f32 `[K + 1]`: the shortest that is allowed is the unit."""
        found = self._found()
        if not self.measured:
            return self._estimate
        lengths = sorted(found)
        table = np.interp(self._lengths, lengths, [found[w] for w in lengths])
        return (table / table[lengths[0]]).astype(np.float32)

    def only(self, length: int) -> np.ndarray:
        """A table that leaves no other choice."""
        return np.where(self._lengths == length, 1.0, np.inf).astype(np.float32)

    def _found(self) -> dict[int, float]:
        return {length: min(seconds) for length, seconds in self._seconds.items() if seconds}

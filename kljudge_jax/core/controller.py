"""A draft length that follows, cycle by cycle and on the device, what was accepted lately."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError

# A batch that has not drafted for so many cycles tries again; for four times as many each time that it was in vain, up
# to the longest.
PROBE_INTERVAL = 16
_GROWTH = 4
_LONGEST_INTERVAL = 1024

# A running estimate of the share of draft tokens that are accepted: what a row is taken for before its first draft, how
# many tokens' worth of evidence that is, and what a cycle with a draft leaves of the evidence before it.
_PRIOR_RATE = 0.7
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.9

# The least expected speed of a row, against plain decoding, at which a batch drafts.
_LEAST_SPEED = 0.95

# What the target pays for one more position, as a share of a pass over one: 1.23 times one pass for five positions was
# measured on a CPU with a good layout; accelerators pay less until they run out of arithmetic.
SCORING_COST = 0.05

# The names of a cost that is measured once for each program, and for one that the models' sizes say.
MEASURED, SIZE = "measured", "size"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pace:
    """What `Adaptive` remembers of every row.

    Attributes:
      accepted: f32 `[B]`, draft tokens accepted, fading with time.
      tested: f32 `[B]`, draft tokens accepted or rejected, fading alike; those after a rejection were not tested.
      idle: int32 `[B]`, cycles of the batch since the last one with a draft: the same in all rows.
      interval: int32 `[B]`, so many without a draft, and one is tried: the same in all rows.
    """

    accepted: jax.Array
    tested: jax.Array
    idle: jax.Array
    interval: jax.Array

    @classmethod
    def start(cls, rows: jax.Array) -> Pace:
        """Before any draft, for as many rows as int32 `rows` `[B]` has."""
        none = rows * 0
        weight = none.astype(jnp.float32) + _PRIOR_WEIGHT
        return cls(_PRIOR_RATE * weight, weight, none, none + PROBE_INTERVAL)

    def entered(self, row: jax.Array) -> Pace:
        """With a new prompt in a row: it is taken for what the rows were on average, and tried before long."""
        rate = jnp.sum(self.accepted) / jnp.sum(self.tested)
        return Pace(
            self.accepted.at[row].set(rate * _PRIOR_WEIGHT),
            self.tested.at[row].set(_PRIOR_WEIGHT),
            self.idle,
            jnp.full_like(self.interval, PROBE_INTERVAL),
        )


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """As many draft tokens as pay: each cycle, the n that maximises expected tokens over cost.

    The expected tokens are those of all running rows, sum_b (1 + a_b + ... + a_b^n), where a_b is a row's own running
    acceptance rate; the cost is that of a cycle of the whole batch. One length holds for all rows of a cycle (a row
    near its end uses less), and none is taken that would slow a row below 0.95 of plain decoding. The expectation is
    that of Leviathan et al., arXiv 2211.17192.

    When nothing pays and `minimum` is 0, the run decodes plainly. It tries a short draft after 16 such cycles, then
    after 64, and so on up to 1024.

    What does not depend on the lengths: the tokens of a lossless rule at temperature 0, and the distribution of one
    above. The tokens of a row when sampling, and those of a relaxed rule, do.

    Attributes:
      minimum: the fewest draft tokens of a cycle; from 1 on a run never decodes plainly, and may be slower than that.
      maximum: the most, K.
      confidence: a draft also ends where the draft model's top probability (at temperature 1) is below this, before a
        token is drawn there; 0 is never.
      cost: what one more draft token costs, drafting and scoring it. "measured": what a few cycles of the program take,
        timed once and kept. "size": the ratio of the weights that each model reads, and 0.05 for scoring a position;
        too little where arithmetic bounds a pass, as in batches on a CPU. Or a number, as a share of a plain cycle.

    Raises:
      InputError: a number out of its range.
    """

    minimum: int = 0
    maximum: int = 8
    confidence: float = 0.0
    cost: float | str = MEASURED

    def __post_init__(self):
        for name in ("minimum", "maximum"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"give Adaptive a whole number as its {name}, not {value!r}")
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            raise InputError(
                f"give Adaptive 0 <= minimum <= maximum and a maximum from 1 on, not {self.minimum} and {self.maximum}"
            )
        if not _is_number(self.confidence) or not 0 <= self.confidence <= 1:
            raise InputError(f"give Adaptive a number from 0 up to 1 as its confidence, not {self.confidence!r}")
        if self.cost not in (MEASURED, SIZE) and (not _is_number(self.cost) or not 0 <= self.cost < math.inf):
            raise InputError(
                f"give Adaptive '{MEASURED}', '{SIZE}' or a number from 0 on as its cost, not {self.cost!r}"
            )

    def widths(self) -> tuple[int, ...]:
        """The lengths of draft that a target pass is compiled for, ascending; 0 is a plain step."""
        return tuple(sorted({0, self.probe, math.ceil(self.maximum / 2), self.maximum}))

    def without_cost(self) -> Adaptive:
        """The same, whatever it costs: costs are data of a compiled run, and this is static."""
        return dataclasses.replace(self, cost=SIZE)

    @property
    def probe(self) -> int:
        """How many draft tokens a run tries that wanted none."""
        return max(1, math.ceil(self.maximum / 4))

    def bound(self, pace: Pace, costs: jax.Array | None, left: jax.Array) -> jax.Array:
        """How many draft tokens a row may have in the next cycle: int32 `[]`.

        Args:
          pace: what is remembered.
          costs: f32 `[K + 1]`, see `Numbers`.
          left: int32 `[B]`, how many draft tokens each row could use; negative where it has stopped.
        """
        lengths = jnp.arange(self.maximum + 1)
        if costs is None:
            token = float(self.cost) if isinstance(self.cost, int | float) else SCORING_COST
            costs = 1 + token * lengths.astype(jnp.float32)
        rate = pace.accepted / pace.tested
        powers = jax.vmap(lambda one: jax.lax.pow(jnp.full(lengths.shape, one), lengths))(rate)
        expected = jnp.cumsum(jnp.where(lengths[None] <= left[:, None], powers, 0.0), axis=1)
        speed = expected / costs[None]
        # A batch ends with its slowest row: none is slowed below plain decoding for what the others gain.
        fair = jnp.all((speed >= _LEAST_SPEED) | (left <= 0)[:, None] | (lengths == 0)[None], axis=0)
        total = jnp.where(fair if not self.minimum else lengths >= self.minimum, jnp.sum(speed, axis=0), -1.0)
        best = jnp.argmax(total).astype(jnp.int32)
        if not self.minimum:
            # Not even a draft that is kept whole makes up for one that costs more than its tokens.
            due = jnp.any(pace.idle >= pace.interval) & (costs[self.probe] < 1 + self.probe)
            best = jnp.where((best == 0) & due, self.probe, best)
        return jnp.clip(best, 0, jnp.maximum(jnp.max(left), 0))

    def update(self, pace: Pace, wanted: jax.Array, drafted: jax.Array, accepted: jax.Array) -> Pace:
        """What is remembered after a cycle.

        Args:
          pace: what was remembered before.
          wanted: int32 `[B]`, how many draft tokens were asked for.
          drafted: int32 `[B]`, how many there were.
          accepted: int32 `[B]`, how many of those were committed.
        """
        memory = jnp.where(wanted > 0, _MEMORY, 1.0)
        # A draft that ended before its first token was as much in vain as one whose first is rejected.
        missed = (wanted > 0) & ((accepted < drafted) | (drafted == 0))
        tested = (accepted + missed.astype(jnp.int32)).astype(jnp.float32)
        drew = jnp.any(wanted > 0)
        # A run that pays again drafts at once, and not when it is due.
        due = pace.idle >= pace.interval
        interval = jnp.where(due, jnp.minimum(_GROWTH * pace.interval, _LONGEST_INTERVAL), PROBE_INTERVAL)
        return Pace(
            memory * pace.accepted + accepted.astype(jnp.float32),
            memory * pace.tested + tested,
            jnp.where(drew, 0, pace.idle + 1),
            jnp.where(drew, interval, pace.interval),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

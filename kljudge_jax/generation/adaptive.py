"""A draft length that follows, cycle by cycle and on the device, what was accepted lately and what cycles cost."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kljudge_jax.errors import InputError

# A batch that has not drafted for so many cycles tries again; for four times as many each time that it was in vain, up
# to the longest.
PROBE_INTERVAL = 16
_GROWTH = 4
_LONGEST_INTERVAL = 1024

# What a run may lose to drafts that do not pay, as a share of the plain decoding of what it wrote. The promise is 3 %:
# the rest is for what no table of costs knows.
_MOST_LOST = 0.025
# A run that wrote little may lose what one of so many tokens may, or no draft would be tried at its start. Of several
# rows one is always unlucky for a while, and would soon stop drafts that pay for the others, and for itself later.
_FEWEST_TOKENS, _FEWEST_OF_SEVERAL = 80, 256

# How many tokens at a time a draft takes that was not asked for some cycles.
CATCH_UP = 16

# A running estimate of the share of draft tokens that are accepted: what a row is taken for before its first draft, how
# many tokens' worth of evidence that is, and what a cycle with a draft leaves of the evidence before it.
_PRIOR_RATE = 0.7
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.95

# The words for a cost that is measured while a run goes on, and for one that the models' sizes say.
MEASURED, SIZE = "measured", "size"

# What the target pays for one more position, as a share of a pass over one: 1.23 times one pass for five positions was
# measured on a CPU with a good layout; accelerators pay less until they run out of arithmetic.
SCORING_COST = 0.05


class Costs(NamedTuple):
    """What an adaptive length decides by; the unit is a plain cycle, or the shortest that is allowed.

    Attributes:
      cycle: f32 `[K + 1]`, what a cycle with n draft tokens costs, for the whole batch; infinity rules a length out.
      catch_up: f32 `[]`, what it costs that a draft which was not asked takes 16 tokens.
      spent: f32 `[]`, what the run lost to cycles that were timed.
      forced: int32 `[]`, the length that cycles have now whatever pays, so as to be timed; -1 for none.
      together: bool `[]`, no prompt waits for a slot: the run then ends with its slowest row.
    """

    cycle: jax.Array | np.ndarray
    catch_up: ArrayLike = 0.0
    spent: ArrayLike = 0.0
    forced: jax.Array | np.integer | int = -1
    together: ArrayLike = True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pace:
    """What `Adaptive` remembers of every row, and of the run.

    Attributes:
      accepted: f32 `[B]`, draft tokens accepted, fading with time.
      tested: f32 `[B]`, draft tokens accepted or rejected, fading alike; those after a rejection were not tested.
      idle: int32 `[]`, cycles since the last one with a draft.
      interval: int32 `[]`, so many without a draft, and one is tried.
      behind: f32 `[B]`, plain cycles that drafts have cost each row more than they saved it; negative where they paid.
      lost: f32 `[]`, the same of the run, a mean over the rows that ran.
      written: f32 `[]`, tokens committed, a mean over the rows that ran.
    """

    accepted: jax.Array
    tested: jax.Array
    idle: jax.Array
    interval: jax.Array
    behind: jax.Array
    lost: jax.Array
    written: jax.Array

    @classmethod
    def start(cls, batch: int) -> Pace:
        return cls(
            jnp.full((batch,), _PRIOR_RATE * _PRIOR_WEIGHT),
            jnp.full((batch,), _PRIOR_WEIGHT),
            jnp.int32(0),
            jnp.int32(PROBE_INTERVAL),
            jnp.zeros((batch,)),
            jnp.float32(0.0),
            jnp.float32(0.0),
        )

    def entered(self, slot: jax.Array) -> Pace:
        """With a new prompt in a slot: it is taken for what the rows were on average, and tried before long."""
        rate = jnp.sum(self.accepted) / jnp.sum(self.tested)
        return dataclasses.replace(
            self,
            accepted=self.accepted.at[slot].set(rate * _PRIOR_WEIGHT),
            tested=self.tested.at[slot].set(_PRIOR_WEIGHT),
            interval=jnp.int32(PROBE_INTERVAL),
            behind=self.behind.at[slot].set(0.0),
        )


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """As many draft tokens as pay: each cycle, the n that maximises expected tokens over cost.

    The expected tokens are those of all running rows, sum_b (1 + a_b + ... + a_b^n), where a_b is a row's own running
    acceptance rate; the cost is that of a cycle of the whole batch. So one length holds for all rows of a cycle (a row
    near its end uses less), and one hopeful row does not slow the others down. The expectation is that of Leviathan et
    al., arXiv 2211.17192.

    When nothing pays and `minimum` is 0, the run decodes plainly, in the same steps as without a verifier. It tries a
    short draft after 16 such cycles, then after 64, and so on. What drafts cost more than they save is added up, and
    none is tried that could take the run past 2.5 % of the plain decoding of what it wrote, or of 80 tokens where it
    wrote less (256 of each row in a batch of several). While no prompt waits for a slot that holds for every row that
    drafts do not pay for, since a batch ends with its slowest.

    What does not depend on the lengths: the tokens of a lossless rule at temperature 0, and the distribution of one
    that samples. What does: the draws of a rule that samples, and the tokens of a relaxed rule. Those depend on a
    prompt's company in the batch unless `minimum` is `maximum`, and with `cost="measured"` on how fast the machine is.

    With `cost="measured"` the first blocks of cycles of a run are timed, plain ones first, and then some with drafts,
    the first where those 2.5 % allow it, and more as half of them do; what they took decides from then on, in later
    runs of the same program too.

    Attributes:
      minimum: the fewest draft tokens of a cycle; from 1 on a run never decodes plainly, and may be slower than that.
      maximum: the most, K.
      confidence: a draft also ends where the draft model's top probability (at temperature 1) is below this, before a
        token is drawn there; 0 is never.
      cost: what one more draft token costs, drafting and scoring it. "measured": what cycles turn out to take. "size":
        the ratio of the weights that each model reads, and 0.05 for scoring a position, for as many drafts and views as
        the rule has; too little where arithmetic bounds a pass, as in batches on a CPU. Or a number, as a share of a
        plain target pass.

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

    def bound(self, pace: Pace, costs: Costs, count: jax.Array, left: jax.Array) -> jax.Array:
        """How many draft tokens a row may have in the next cycle: int32 `[]`.

        `count` int32 `[B]` is how many tokens each row has, and `left` `[B]` how many draft tokens it could use;
        negative where it has stopped.
        """
        lengths = jnp.arange(self.maximum + 1)
        rate = pace.accepted / pace.tested
        powers = jax.vmap(lambda one: jax.lax.pow(jnp.full(lengths.shape, one), lengths))(rate)
        kept = jnp.where(lengths[None] <= left[:, None], powers, 0.0)
        tokens = jnp.cumsum(kept, axis=1)
        speed = jnp.where(lengths >= self.minimum, jnp.sum(tokens, axis=0) / costs.cycle, 0.0)
        if self.minimum:
            bound = jnp.argmax(speed).astype(jnp.int32)
        else:
            # At the worst, all that is drafted is rejected.
            loss = costs.cycle - 1 + costs.catch_up * _pieces(pace)
            least = allowance(len(rate))
            affordable = loss <= jnp.maximum(_MOST_LOST * pace.written, least) - pace.lost - costs.spent
            # A row that drafts pay for gets back what it lost.
            may_lose = jnp.maximum(_MOST_LOST * count.astype(jnp.float32), least) - pace.behind - costs.spent
            row = (loss[None] <= may_lose[:, None]) | (tokens >= costs.cycle[None]) | (left < 0)[:, None]
            affordable &= jnp.all(row, axis=0) | ~jnp.asarray(costs.together)
            affordable |= lengths == 0
            best = jnp.argmax(jnp.where(affordable, speed, 0.0)).astype(jnp.int32)
            bound = jnp.where((best == 0) & _due(pace) & affordable[self.probe], self.probe, best)
        bound = jnp.where(costs.forced >= 0, costs.forced, bound)
        return jnp.clip(bound, 0, jnp.maximum(jnp.max(left), 0))

    def update(
        self,
        pace: Pace,
        costs: Costs,
        longest: jax.Array,
        drafted: jax.Array,
        accepted: jax.Array,
        committed: jax.Array,
        running: jax.Array,
    ) -> Pace:
        """What is remembered after a cycle.

        Args:
          pace: what it was decided by.
          costs: the same.
          longest: int32 `[]`, draft tokens that were made for the row that wanted most; 0 is a plain cycle.
          drafted: int32 `[B]`, draft tokens of each row.
          accepted: int32 `[B]`, those that were committed.
          committed: int32 `[B]`, all tokens committed.
          running: bool `[B]`, the rows that the cycle was for.
        """
        memory = jnp.where(drafted > 0, _MEMORY, 1.0)
        tested = (accepted + (accepted < drafted).astype(jnp.int32)).astype(jnp.float32)
        tokens = jnp.sum(committed) / jnp.maximum(jnp.sum(running), 1)
        cost = costs.cycle[longest] + costs.catch_up * _pieces(pace)
        # Cycles that the host times it adds up itself.
        counts = (longest > 0) & (costs.forced < 0)
        # A run that pays again drafts at once, and not when it is due.
        interval = jnp.where(_due(pace), jnp.minimum(_GROWTH * pace.interval, _LONGEST_INTERVAL), PROBE_INTERVAL)
        return Pace(
            memory * pace.accepted + accepted.astype(jnp.float32),
            memory * pace.tested + tested,
            jnp.where(longest > 0, 0, pace.idle + 1),
            jnp.where(longest > 0, interval, pace.interval),
            pace.behind + jnp.where(counts & running, cost - committed.astype(jnp.float32), 0.0),
            pace.lost + jnp.where(counts, cost - tokens, 0.0),
            pace.written + tokens,
        )

    @property
    def probe(self) -> int:
        """How many draft tokens a run tries that wanted none."""
        return max(1, math.ceil(self.maximum / 4))


def allowance(batch: int) -> float:
    """The least that a run of so many rows may lose to drafts that do not pay, in plain cycles."""
    return _MOST_LOST * (_FEWEST_TOKENS if batch == 1 else _FEWEST_OF_SEVERAL)


def _pieces(pace: Pace) -> jax.Array:
    """In how many pieces a draft takes what it was not asked for."""
    return jnp.ceil(pace.idle / CATCH_UP)


def _due(pace: Pace) -> jax.Array:
    return pace.idle >= pace.interval


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

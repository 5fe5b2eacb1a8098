"""A draft length that follows, row by row and on the device, what was accepted lately."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError

# A row that drafts nothing tries again after so many cycles.
PROBE_INTERVAL = 16

# A running estimate of the share of draft tokens that are accepted: what a row is taken for before its first draft, how
# many tokens' worth of evidence that is, and what a cycle leaves of the evidence before it.
_PRIOR_RATE = 0.7
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.9

# What the target pays for one more position, as a share of a pass over one: 1.23 times one pass for five positions was
# measured on a CPU with a good layout; accelerators pay less until they run out of arithmetic.
SCORING_COST = 0.05


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pace:
    """What `Adaptive` remembers of every row.

    Attributes:
      accepted: f32 `[B]`, draft tokens accepted, fading with time.
      tested: f32 `[B]`, draft tokens accepted or rejected, fading alike; those after a rejection were not tested.
      idle: int32 `[B]`, cycles since the row last wanted a draft.
    """

    accepted: jax.Array
    tested: jax.Array
    idle: jax.Array

    @classmethod
    def start(cls, batch: int) -> Pace:
        return cls(jnp.zeros((batch,)), jnp.zeros((batch,)), jnp.zeros((batch,), jnp.int32))


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """As many draft tokens as pay: the n that maximises expected tokens over cost, (1 + a + ... + a^n) / (1 + cost n).

    a is a row's own running acceptance rate, so a row of a batch wants what it wants alone; the batch drafts as many
    as its most hopeful row wants, and no row uses more than its own. The expectation is that of Leviathan et al.,
    arXiv 2211.17192. When nothing pays and `minimum` is 0, a row decodes plainly and tries a short draft again every
    16 cycles. Lossless rules stay lossless: what is wanted depends on the past alone.

    Attributes:
      minimum: the fewest draft tokens of a cycle; from 1 on a row never decodes plainly.
      maximum: the most, K.
      confidence: a draft also ends where the draft model's top probability (at temperature 1) is below this, before a
        token is drawn there; 0 is never.
      cost: what one more draft token costs, drafting and scoring it, as a share of a plain target pass. None: the ratio
        of the weights that each model reads, and 0.05 for scoring a position, for as many drafts and views as the
        rule has.

    Raises:
      InputError: a number out of its range.
    """

    minimum: int = 0
    maximum: int = 8
    confidence: float = 0.0
    cost: float | None = None

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
        if self.cost is not None and (not _is_number(self.cost) or not 0 <= self.cost < math.inf):
            raise InputError(f"give Adaptive a number from 0 on as its cost, or None, not {self.cost!r}")

    def widths(self) -> tuple[int, ...]:
        """The lengths of draft that a target pass is compiled for, ascending; 0 is a plain step."""
        return tuple(sorted({0, self._probe(), math.ceil(self.maximum / 2), self.maximum}))

    def wanted(self, pace: Pace) -> jax.Array:
        """How many draft tokens each row wants now: int32 `[B]`. `cost` has to be a number."""
        rate = (pace.accepted + _PRIOR_RATE * _PRIOR_WEIGHT) / (pace.tested + _PRIOR_WEIGHT)
        lengths = jnp.arange(self.maximum + 1)
        tokens = jnp.cumsum(rate[:, None] ** lengths, axis=1)
        speed = tokens / (1.0 + self.cost * lengths)
        best = jnp.argmax(jnp.where(lengths >= self.minimum, speed, 0.0), axis=1).astype(jnp.int32)
        return jnp.where((best == 0) & (pace.idle >= PROBE_INTERVAL), self._probe(), best)

    def update(self, pace: Pace, wanted: jax.Array, drafted: jax.Array, accepted: jax.Array) -> Pace:
        """What is remembered after a cycle in which a row wanted, drafted and accepted so many tokens, `[B]` each."""
        memory = jnp.where(drafted > 0, _MEMORY, 1.0)
        tested = accepted + (accepted < drafted)
        return Pace(
            memory * pace.accepted + accepted,
            memory * pace.tested + tested,
            jnp.where(wanted > 0, 0, pace.idle + 1),
        )

    def _probe(self) -> int:
        return max(1, math.ceil(self.maximum / 4))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""A draft length that follows, row by row and on the device, what was accepted lately."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError

# A row that drafts nothing tries again when its cycles are a multiple of this; of four times as many each time that it
# was in vain, up to the longest: what a draft that never pays costs then goes to nothing. Multiples, since rows that
# have come as far try together, and a batch pays for one draft what it pays for all.
PROBE_INTERVAL = 16
_GROWTH = 4
_LONGEST_INTERVAL = 1024

# A running estimate of the share of draft tokens that are accepted: what a row is taken for before its first draft, how
# many tokens' worth of evidence that is, and what a cycle with a draft leaves of the evidence before it.
_PRIOR_RATE = 0.7
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.9

# The word for a cost that is measured while a run goes on.
MEASURED = "measured"

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
      age: int32 `[B]`, cycles that the row has had.
      interval: int32 `[B]`, a row that wants no draft tries one where its age is a multiple of this.
    """

    accepted: jax.Array
    tested: jax.Array
    age: jax.Array
    interval: jax.Array

    @classmethod
    def start(cls, batch: int) -> Pace:
        return cls(
            jnp.full((batch,), _PRIOR_RATE * _PRIOR_WEIGHT),
            jnp.full((batch,), _PRIOR_WEIGHT),
            jnp.zeros((batch,), jnp.int32),
            jnp.full((batch,), PROBE_INTERVAL, jnp.int32),
        )


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """As many draft tokens as pay: the n that maximises expected tokens over cost, (1 + a + ... + a^n) / (1 + cost n).

    a is a row's own running acceptance rate, so a row of a batch wants what it wants alone; the batch drafts as many
    as its most hopeful row wants, and no row uses more than its own. The expectation is that of Leviathan et al.,
    arXiv 2211.17192. When nothing pays and `minimum` is 0, a row decodes plainly, and tries a short draft again when
    its cycles are a multiple of 16, then of 64, and so on. Lossless rules stay lossless: what is wanted depends on the
    past alone.

    With `cost="measured"` the first blocks of cycles of a run have lengths that are chosen to be timed, and what a
    cycle of each length took, in place of 1 + cost n, decides from then on, in later runs of the same program too. The
    tokens of a relaxed rule then depend on how fast the machine is, as do draws; those of a lossless rule at
    temperature 0 do not.

    Attributes:
      minimum: the fewest draft tokens of a cycle; from 1 on a row never decodes plainly.
      maximum: the most, K.
      confidence: a draft also ends where the draft model's top probability (at temperature 1) is below this, before a
        token is drawn there; 0 is never.
      cost: what one more draft token costs, drafting and scoring it, as a share of a plain target pass. None: the ratio
        of the weights that each model reads, and 0.05 for scoring a position, for as many drafts and views as the
        rule has. "measured": what cycles turn out to take.

    Raises:
      InputError: a number out of its range.
    """

    minimum: int = 0
    maximum: int = 8
    confidence: float = 0.0
    cost: float | str | None = None

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
        if self.cost not in (None, MEASURED) and (not _is_number(self.cost) or not 0 <= self.cost < math.inf):
            raise InputError(f"give Adaptive a number from 0 on as its cost, '{MEASURED}' or None, not {self.cost!r}")

    def widths(self) -> tuple[int, ...]:
        """The lengths of draft that a target pass is compiled for, ascending; 0 is a plain step."""
        return tuple(sorted({0, self.probe, math.ceil(self.maximum / 2), self.maximum}))

    def without_cost(self) -> Adaptive:
        """The same, whatever it costs: costs are data of a compiled run, and this is static."""
        return dataclasses.replace(self, cost=None)

    def wanted(self, pace: Pace, costs: jax.Array) -> jax.Array:
        """How many draft tokens each row wants now: int32 `[B]`.

        `costs` f32 `[K + 1]` is what a cycle with n draft tokens costs, in any unit; infinity rules a length out.
        """
        rate = pace.accepted / pace.tested
        lengths = jnp.arange(self.maximum + 1)
        tokens = jnp.cumsum(rate[:, None] ** lengths, axis=1)
        best = jnp.argmax(jnp.where(lengths >= self.minimum, tokens / costs, 0.0), axis=1).astype(jnp.int32)
        return jnp.where((best == 0) & _due(pace), self.probe, best)

    def update(self, pace: Pace, wanted: jax.Array, drafted: jax.Array, accepted: jax.Array) -> Pace:
        """What is remembered after a cycle in which a row wanted, drafted and accepted so many tokens, `[B]` each."""
        memory = jnp.where(drafted > 0, _MEMORY, 1.0)
        tested = accepted + (accepted < drafted)
        # A row that pays again wants a draft at once, and not when it is due.
        interval = jnp.where(_due(pace), jnp.minimum(_GROWTH * pace.interval, _LONGEST_INTERVAL), PROBE_INTERVAL)
        return Pace(
            memory * pace.accepted + accepted,
            memory * pace.tested + tested,
            pace.age + 1,
            jnp.where(wanted > 0, interval, pace.interval),
        )

    @property
    def probe(self) -> int:
        """How many draft tokens a row tries that wanted none."""
        return max(1, math.ceil(self.maximum / 4))


def _due(pace: Pace) -> jax.Array:
    return (pace.age > 0) & (pace.age % pace.interval == 0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""What a run is: its static shape, its numbers, and the state that it carries from cycle to cycle."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.core.controller import Adaptive, Pace
from kljudge_jax.core.protocols import Drafter
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.scorers import DraftScorer, Scorer

# Where a committed token came from: the codes that `LoopState.origin` holds.
ORIGINS = ("draft", "relaxed", "target")
DRAFT, RELAXED, TARGET = range(3)

# Why `decode` ended: the codes that `LoopState.finish` holds.
DONE, MAX_CYCLES, SLOTS = range(3)


def from_draft(origin):
    """Whether tokens of these origin codes were drafted."""
    return origin != TARGET


@dataclasses.dataclass(frozen=True)
class Prefill:
    """How prompts are consumed.

    Attributes:
      chunk: tokens of a row in one pass.
      one_by_one: one row after another, each over the chunks that it has itself: for a CPU, where padding costs as much
        as text does. Elsewhere a pass over few tokens costs what one over many does.
    """

    chunk: int = 128
    one_by_one: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static half of a run. Hashable: a new value compiles anew.

    Attributes:
      draft_length: K, the longest draft; 0 is plain decoding, which has no drafter.
      room: new tokens that a row has buffers for, N.
      capacity: slots of each row's sequence, and the most that a cache may have; None is what prompts, new tokens and a
        cycle take.
      trace: record divergences and log-probabilities of every token.
      scorer: how the target looks at a draft.
      controller: how the draft length follows what is accepted; None is always K.
      prefill: how prompts are consumed.
    """

    draft_length: int
    room: int
    capacity: int | None = None
    trace: bool = False
    scorer: Scorer = dataclasses.field(default_factory=DraftScorer)
    controller: Adaptive | None = None
    prefill: Prefill = dataclasses.field(default_factory=Prefill)

    @property
    def written(self) -> int:
        """At most how many slots a cycle writes."""
        return self.scorer.slots(self.draft_length)

    def slots(self, prompt: int) -> int:
        """Slots of each row's sequence, for prompts of that width."""
        return prompt + self.room + self.written if self.capacity is None else self.capacity

    def fills(self, drafter: Drafter | None) -> bool:
        """Whether a draft has as many tokens as are asked for."""
        unsure = self.controller is not None and bool(self.controller.confidence)
        return getattr(drafter, "always_full", False) and not unsure

    def widths(self, drafter: Drafter | None) -> tuple[int, ...]:
        """The lengths of draft that a target pass is compiled for, ascending, K the last."""
        if self.controller is not None:
            return tuple(width for width in self.controller.widths() if width or not self.fills(drafter))
        return (self.draft_length,) if drafter is None or self.fills(drafter) else (0, self.draft_length)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers:
    """The data half of a run: other numbers of the same kind run the same program. Make them with `numbers`.

    Attributes:
      sampling: how tokens are drawn.
      budget: int32 `[]` or `[B]`, new tokens of a row, at most `Shape.room`.
      end_ids: int32 `[E]`, every id that ends an answer.
      section_ids: int32 `[2]`, the ids that open and close a thinking block; None where there are none.
      costs: f32 `[K + 1]`, what a cycle with n draft tokens takes, in plain cycles, for a draft length that adapts;
        infinity rules a length out. None is what `Adaptive.cost` says, or 5 % of a cycle for each.
    """

    sampling: Sampling
    budget: jax.Array
    end_ids: jax.Array
    section_ids: jax.Array | None = None
    costs: jax.Array | None = None


def numbers(
    max_new_tokens: Any,
    *,
    end_ids: Any = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    section_ids: tuple[int, int] | None = None,
    costs: Any = None,
) -> Numbers:
    """The numbers of a run.

    Args:
      max_new_tokens: one for all rows, or one a row.
      end_ids: every id that ends an answer.
      temperature: 0 is greedy.
      top_k, top_p, min_p: what is cut off of both models' distributions when sampling; 0, 1.0 and 0 cut nothing.
      section_ids: the ids that open and close a thinking block.
      costs: `[K + 1]`, see `Numbers`.

    Raises:
      InputError: a number of `Sampling.create` is out of its range.
    """
    return Numbers(
        Sampling.create(temperature, top_k, top_p, min_p),
        jnp.asarray(max_new_tokens, jnp.int32),
        jnp.asarray(end_ids, jnp.int32).reshape(-1),
        None if section_ids is None else jnp.asarray(section_ids, jnp.int32),
        None if costs is None else jnp.asarray(costs, jnp.float32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """Everything a run carries from cycle to cycle; B rows, N = `Shape.room`, K draft length, S slots.

    A row that has stopped may be longer than the caches are: nothing reads what its cycles write, each in the row's own
    slots. Buffers of new tokens have K + 1 spare places, since a cycle writes K + 1 and counts what it keeps.

    Attributes:
      sequence: int32 `[B, S]`, prompt and new tokens by position; stale past the last token.
      length: int32 `[B]`, tokens of `sequence`.
      origin: int8 `[B, N + K + 1]`, per new token an index into `ORIGINS`; stale from `count` on.
      count: int32 `[B]`, new tokens.
      cache: the target's: all tokens of a row but its last one. The rows of several drafts lie side by side.
      drafter: what the drafter remembers, of as many rows as the cache.
      carry: what the rule remembers of each answer, `[B, ...]`; None from a rule without a memory.
      section: int32 `[B]`, 1 where the last token stands in a thinking block or opens one; None without `section_ids`.
      running: bool `[B]`.
      failed: bool `[B]`, stopped because a model returned NaN or +inf.
      alone: bool `[B]`, goes on without its draft, which returned NaN or +inf under a lossless rule.
      keys: `[B]`, one key a row.
      budget: int32 `[B]`, tokens a row may commit.
      pace: what an adaptive draft length remembers, or None.
      cycles: int32 `[B]`.
      cycle_drafted, cycle_committed: int32 `[B, N + 1]`, per cycle.
      finish: int32 `[B]`, `DONE` where a row has stopped; else why the last `decode` ended before it did: `SLOTS` where
        a cycle of a row would not have fitted, `MAX_CYCLES` where no more cycles were asked for.
      kl: f32 `[B, N + K + 1]` or None, KL(target || draft) where a token was drafted, nats at T = 1; else NaN.
      logprobs: f32, same shape or None, log-probability under the target at T = 1.
      sampled_logprobs: f32, same shape or None, the same under what tokens are drawn from; None when greedy.
    """

    sequence: jax.Array
    length: jax.Array
    origin: jax.Array
    count: jax.Array
    cache: Any
    drafter: Any
    carry: Any
    section: jax.Array | None
    running: jax.Array
    failed: jax.Array
    alone: jax.Array
    keys: jax.Array
    budget: jax.Array
    pace: Pace | None
    cycles: jax.Array
    cycle_drafted: jax.Array
    cycle_committed: jax.Array
    finish: jax.Array
    kl: jax.Array | None
    logprobs: jax.Array | None
    sampled_logprobs: jax.Array | None

    @property
    def left(self) -> jax.Array:
        """How many draft tokens each row can use, int32 `[B]`: its verdict adds one of its own. -1 where it stopped."""
        left = jnp.where(self.alone, 0, self.budget - self.count - 1)
        return jnp.where(self.running, left, -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Result:
    """What a run wrote; B rows, N the room for new tokens.

    Attributes:
      tokens: int32 `[B, N]`, 0 from `count` on.
      count: int32 `[B]`.
      origin: int8 `[B, N]`, indices into `ORIGINS`.
      running, failed, alone: bool `[B]`, as in `LoopState`.
      finish: int32 `[B]`, the same.
      kl, logprobs, sampled_logprobs: f32 `[B, N]`, NaN from `count` on; None without `Shape.trace`. When greedy the
        tokens are drawn from a point mass: `sampled_logprobs` are 0.
    """

    tokens: jax.Array
    count: jax.Array
    origin: jax.Array
    running: jax.Array
    failed: jax.Array
    alone: jax.Array
    finish: jax.Array
    kl: jax.Array | None
    logprobs: jax.Array | None
    sampled_logprobs: jax.Array | None


def result(state: LoopState) -> Result:
    """The new tokens of every row, and what is known of them."""
    room = state.cycle_drafted.shape[1] - 1
    start = state.length - state.count
    places = jnp.minimum(start[:, None] + jnp.arange(room)[None], state.sequence.shape[1] - 1)
    written = jnp.arange(room)[None] < state.count[:, None]
    tokens = jnp.where(written, jnp.take_along_axis(state.sequence, places, axis=1), 0)

    def numbers(buffer):
        return None if buffer is None else jnp.where(written, buffer[:, :room], jnp.nan)

    sampled = numbers(state.sampled_logprobs)
    if sampled is None and state.logprobs is not None:
        sampled = jnp.where(written, 0.0, jnp.nan)
    return Result(
        tokens, state.count, state.origin[:, :room], state.running, state.failed, state.alone, state.finish,
        numbers(state.kl), numbers(state.logprobs), sampled,
    )  # fmt: skip

"""What a run is: its static settings, and the state that it carries from cycle to cycle."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from kljudge_jax.decoding.adaptive import Adaptive, Pace
from kljudge_jax.decoding.drafter import Caches, Models
from kljudge_jax.decoding.scorers import DraftScorer, Scorer

# Where a committed token came from: the codes that `LoopState.origin` holds.
ORIGINS = ("draft", "relaxed", "target")
DRAFT, RELAXED, TARGET = range(3)


def from_draft(origin):
    """Whether tokens of these origin codes were drafted."""
    return origin != TARGET


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static half of a run. Hashable: a new value compiles anew.

    Attributes:
      drafter: what proposes tokens; None for plain decoding, which is K = 0.
      draft_length: K, the longest draft.
      capacity: slots of each row's sequence, S, and the most that a cache may have.
      room: tokens that the buffers of new tokens hold, N.
      trace: record the divergence and the log-probability of every token.
      adaptive: how the draft length adapts; None is always K.
      scorer: how the target looks at a draft.
    """

    drafter: Any
    draft_length: int
    capacity: int
    room: int
    trace: bool
    adaptive: Adaptive | None = None
    scorer: Scorer = dataclasses.field(default_factory=DraftScorer)

    @property
    def widths(self) -> tuple[int, ...]:
        """The lengths of draft that a target pass after a draft is compiled for, ascending, K the last."""
        if self.adaptive is not None:
            return tuple(width for width in self.adaptive.widths() if width or not self.fills_drafts)
        varies = self.drafter is not None and not self.drafter.always_full
        return (0, self.draft_length) if varies else (self.draft_length,)

    @property
    def fills_drafts(self) -> bool:
        """Whether a draft has as many tokens as are asked for."""
        confidence = 0.0 if self.adaptive is None else self.adaptive.confidence
        return self.drafter is not None and self.drafter.always_full and not confidence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """Everything a run carries from cycle to cycle; B rows, N = `Settings.room`, K draft length, S slots.

    A row that has stopped may be longer than the caches are: nothing reads what its cycles write, each in the row's own
    slots.

    Buffers of new tokens have K + 1 spare places, since a cycle writes K + 1 and counts what it keeps.

    Attributes:
      sequence: int32 `[B, S]`, prompt and new tokens by position; stale past the last token.
      length: int32 `[B]`, tokens of `sequence`.
      origin: int8 `[B, N + K + 1]`, per new token an index into `ORIGINS`; stale from `count` on.
      count: int32 `[B]`, new tokens.
      caches: what each model consumed; the target's, all tokens of a row but its last one. The rows of a scorer's
        several drafts lie side by side. Both have the same number of slots, at most S.
      running: bool `[B]`.
      failed: bool `[B]`, stopped because a model returned NaN or +inf.
      alone: bool `[B]`, goes on without its draft, which returned NaN or +inf under a lossless rule.
      keys: `[B]`, one key a row.
      budget: int32 `[B]`, tokens a row may commit.
      pace: what an adaptive draft length remembers, or None.
      cycles: int32 `[B]`.
      cycle_drafted, cycle_committed: int32 `[B, N + 1]`, per cycle.
      kl: f32 `[B, N + K + 1]` or None, KL(target || draft) where a token was drafted, nats at T = 1; else NaN.
      logprobs: f32, same shape or None, log-probability under the target at T = 1.
    """

    sequence: jax.Array
    length: jax.Array
    origin: jax.Array
    count: jax.Array
    caches: Caches
    running: jax.Array
    failed: jax.Array
    alone: jax.Array
    keys: jax.Array
    budget: jax.Array
    pace: Pace | None
    cycles: jax.Array
    cycle_drafted: jax.Array
    cycle_committed: jax.Array
    kl: jax.Array | None
    logprobs: jax.Array | None

    def placed(self, models: Models) -> LoopState:
        """The same state, laid out as the models are: rows with the batch, each cache with its model's heads."""
        layout = models.target.layout
        if layout is None:
            return self
        target, draft = self.caches
        draft_layout = None if models.draft is None else models.draft.layout
        caches = Caches(
            target.placed(layout), draft if draft is None or draft_layout is None else draft.placed(draft_layout)
        )
        rest = {name: layout.rows(value) for name, value in vars(self).items() if name != "caches"}
        return LoopState(caches=caches, **rest)

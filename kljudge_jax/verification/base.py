"""What a verification rule sees and what it answers: one sequence, one cycle."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VerifyInputs:
    """One sequence in one cycle. K draft length, V vocabulary, Hd and Ht hidden sizes of draft and target.

    Row i of the draft's and of the target's logits predict draft token i after the same prefix; the target's last row
    predicts the token after the whole draft. Rows from `draft_count` on (and the target's after it) are garbage, NaN
    included: a rule masks them before it reads them. K = 0 is valid: plain decoding.

    Attributes:
      draft_tokens: int32 `[K]`.
      draft_count: int32 `[]`, how many of the K are real.
      draft_logits: f32 `[K, V]`, processed exactly as the token was sampled: temperature, then top-k, top-p and min-p;
        what was cut off holds -inf. A drafter without probabilities gives 0 at its token and -inf elsewhere; one over a
        part of the vocabulary has -inf at every token outside, in `raw_draft_logits` too.
      target_logits: f32 `[K + 1, V]`, processed the same way.
      raw_draft_logits: f32 `[K, V]`, before any processing; the same array when greedy.
      raw_target_logits: f32 `[K + 1, V]`, before any processing; the same array when greedy.
      draft_hidden: `[K, Hd]`, the draft's final-norm state after consuming draft token i; None unless the rule
        names it in `needs`.
      target_hidden: `[K, Ht]`, the target's; None unless the rule names it in `needs`.
      greedy: bool `[]`, temperature 0: corrections and bonus tokens are the target's argmax.
      position: int32 `[]`, tokens of this answer already committed; None where that is not known, never the first.
      remaining: int32 `[]`, tokens that may still be committed; None where that is not known.
      section: int32 `[K + 1]`, where draft token i would stand, counted over prompt and draft: 1 inside a thinking
        block, 0 outside; None where no ids of one are given. Ids are looked for only for a
        rule that names "section" in `needs`.
      carry: the rule's own state of this answer, as its last `Verdict` left it; None from a rule without
        `init_carry`.
      judged_logits: f32 `[K + 1, V]`, the target's logits after a second view too, processed as `target_logits` are;
        None where there is none. The others stay those of the first view.
    """

    draft_tokens: jax.Array
    draft_count: jax.Array
    draft_logits: jax.Array
    target_logits: jax.Array
    raw_draft_logits: jax.Array
    raw_target_logits: jax.Array
    draft_hidden: jax.Array | None
    target_hidden: jax.Array | None
    greedy: jax.Array
    position: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    remaining: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    section: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    carry: Any = dataclasses.field(default=None, kw_only=True)
    judged_logits: jax.Array | None = dataclasses.field(default=None, kw_only=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule decides.

    Attributes:
      num_accepted: int32 `[]`, 0 to `draft_count`: the leading draft tokens that are kept.
      next_token: int32 `[]`, the token after them: the correction, or the bonus when all were accepted. The loop
        fails a row whose token is no id of the vocabulary, and takes a `num_accepted` out of its range to the nearest.
      relaxed: bool `[K]`, accepted here though the strict rule with the same draw would not have; False from
        `num_accepted` on.
      carry: what the rule remembers of this answer from here on, of the shapes and dtypes of its `init_carry()`; None
        from a rule without one.
    """

    num_accepted: jax.Array
    next_token: jax.Array
    relaxed: jax.Array
    carry: Any = None


@runtime_checkable
class Verifier(Protocol):
    """A verification rule: a pure function of one sequence, which the decoding loop vmaps over the batch.

    Implementations are frozen dataclasses registered as pytrees, so that a threshold is data and sweeping it compiles
    nothing. Four class attributes are read where a rule has them: `needs`, a frozenset of the inputs that cost extra
    ("draft_hidden", "target_hidden"), `greedy_only`, True for a rule that a temperature above 0 makes no sense of,
    `compares_drafts`, True for one that makes no sense of a draft whose distribution is all at its token, and
    `scorer`, how the target looks at a draft: "draft", "several drafts" (`KSequential`), "reflection" (`Reflective`).
    A rule with a memory has a method `init_carry()`, a pytree of arrays: what it remembers before the first token.
    `verification.rule` has the parts that the rules here are made of.
    """

    def __call__(self, key: jax.Array, inputs: VerifyInputs) -> Verdict: ...


@runtime_checkable
class DraftsVerifier(Verifier, Protocol):
    """A rule whose `scorer` is "several drafts"."""

    def choose(self, key: jax.Array, inputs: VerifyInputs) -> tuple[Verdict, jax.Array]:
        """As `KSequential.choose`."""


@runtime_checkable
class ReflectionVerifier(Verifier, Protocol):
    """A rule whose `scorer` is "reflection"."""

    def fuse(self, logits: jax.Array, reflected: jax.Array) -> jax.Array:
        """As `Reflective.fuse`."""

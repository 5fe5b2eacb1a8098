"""What a drafter is given and what it proposes: the types that every one of them shares."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kljudge_jax.decoding.adaptive import Adaptive
from kljudge_jax.decoding.sampling import Sampling
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer


class Models(NamedTuple):
    """The models of a run; `draft` is None where no drafter uses it."""

    target: Transformer
    draft: Transformer | None


class Caches(NamedTuple):
    """Their caches. The target's holds all of a row but its last token; the draft's may lack a few more."""

    target: KVCache
    draft: KVCache | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Where each row stands; B rows, S slots.

    Attributes:
      sequence: int32 `[B, S]`, prompt and new tokens by position, as in the caches; stale past the last token.
      consumed: int32 `[B]`, how many tokens stand before the last one; so it is the last one's position.
      wanted: int32 `[B]`, how many draft tokens a row can use, 0 to K.
      keys: one PRNG key a row `[B]`.
    """

    sequence: jax.Array
    consumed: jax.Array
    wanted: jax.Array
    keys: jax.Array


@dataclasses.dataclass(frozen=True)
class Request:
    """The static half of what is asked for.

    Attributes:
      draft_length: K, the most tokens of a draft.
      with_hidden: also consume the last token, so that every one has its hidden state.
      adaptive: how the length adapts; None is K tokens whatever `wanted` says.
    """

    draft_length: int
    with_hidden: bool = False
    adaptive: Adaptive | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """What a drafter proposes for one cycle.

    Attributes:
      tokens: int32 `[B, K]`.
      count: int32 `[B]`, how many of the K are proposed; what comes after is garbage.
      logits: f32 `[B, K, V]`, processed exactly as the tokens were drawn; None where they are `raw_logits` (greedy).
      raw_logits: f32 `[B, K, V]`, before processing; None from a drafter that draws nothing, whose distribution is all
        at its token.
      hidden: `[B, K, Hd]`, the state after consuming each token, or None where no rule asked.
    """

    tokens: jax.Array
    count: jax.Array
    logits: jax.Array | None
    raw_logits: jax.Array | None
    hidden: jax.Array | None

    def distributions(self, width: int, vocab_size: int) -> tuple[jax.Array, jax.Array]:
        """Processed and raw logits of the first `width` tokens, f32 `[B, width, V]` both."""
        if self.raw_logits is None:
            # Made here, inside the program that reads them, they are fused into it and never stored.
            at_token = jnp.arange(vocab_size)[None, None] == self.tokens[:, :width, None]
            raw = jnp.where(at_token, jnp.float32(0.0), -jnp.inf)
        else:
            raw = self.raw_logits[:, :width]
        return (raw if self.logits is None else self.logits[:, :width]), raw


class Drafter(Protocol):
    """Where the proposed tokens of a cycle come from: a frozen, hashable dataclass, part of the compiled program.

    Attributes:
      uses_draft_model: it needs `pair.draft`.
      has_hidden: it has hidden states to show to a rule that needs them.
      draws: when sampling, its tokens are drawn from its distributions, so that two drafts of one row can differ.
      always_full: it proposes K tokens in every cycle of a fixed length.
    """

    uses_draft_model: ClassVar[bool]
    has_hidden: ClassVar[bool]
    draws: ClassVar[bool]
    always_full: ClassVar[bool]

    def check(self, pair: ModelPair) -> None:
        """Raises InputError if it cannot draft for this pair."""

    def cost(self, pair: ModelPair) -> float:
        """What one more draft token costs, as a share of a target pass over one token."""

    def propose(
        self, models: Models, caches: Caches, context: Context, sampling: Sampling, request: Request
    ) -> tuple[Draft, Caches]:
        """Up to `request.draft_length` = K >= 1 tokens a row.

        `caches` come back with whatever was consumed; the target's is rolled back to `context.consumed` by the caller.
        """

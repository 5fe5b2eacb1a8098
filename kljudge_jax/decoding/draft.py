"""Drafters: where the proposed tokens of a cycle come from."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kljudge_jax.decoding.sampling import Sampling, draw, process_logits
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.transformer import Transformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """What a drafter proposes for one cycle.

    Attributes:
      tokens: int32 `[B, K]`.
      logits: f32 `[B, K, V]`, processed exactly as the tokens were drawn.
      raw_logits: f32 `[B, K, V]`, before processing; the same array when greedy.
      hidden: `[B, K, Hd]`, the state after consuming each token, or None where no rule asked.
    """

    tokens: jax.Array
    logits: jax.Array
    raw_logits: jax.Array
    hidden: jax.Array | None


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """Drafts with the pair's draft model, one token after another (`lax.scan`)."""

    uses_draft_model: ClassVar[bool] = True

    def propose(
        self,
        model: Transformer,
        cache: KVCache,
        recent: jax.Array,
        consumed: jax.Array,
        keys: jax.Array,
        sampling: Sampling,
        draft_length: int,
        with_hidden: bool,
    ) -> tuple[Draft, KVCache]:
        """Rolls the draft model out for `draft_length` = K >= 1 tokens.

        Args:
          model: the draft model.
          cache: its cache; whatever it holds up to `consumed - 1` tokens is right.
          recent: int32 `[B, 2]`, the last two tokens of each row.
          consumed: int32 `[B]`, how many tokens stand before the last one.
          keys: one key a row `[B]`.
          sampling: how tokens are drawn.
          draft_length: K.
          with_hidden: also consume the last token, so that every one has its hidden state.
        """
        # When the whole last draft was accepted, its last token is not in the cache yet. Instead of asking, the first
        # step always takes two tokens: at one row a product costs what it costs at two. A row with a single token has
        # no token before it; it takes its own one first and a stale one after, which the next step overwrites.
        start = jnp.maximum(consumed - 1, 0)
        alone = (consumed == 0)[:, None]
        first = jnp.where(alone, recent[:, ::-1], recent)
        hidden, cache = model(first, cache.at_length(start))
        hidden = jnp.where(alone, hidden[:, 0], hidden[:, 1])
        cache = cache.at_length(consumed + 1)

        def choose(hidden, step):
            raw = model.logits(hidden)
            processed = process_logits(raw, sampling)
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            return jax.vmap(draw, (0, 0, None))(step_keys, processed, sampling), raw, processed

        def step(carry, i):
            cache, token = carry
            hidden, cache = model(token[:, None], cache)
            token, raw, processed = choose(hidden[:, 0], i)
            return (cache, token), (token, raw, processed if not sampling.greedy else None, hidden[:, 0])

        token, raw, processed = choose(hidden, 0)
        (cache, last), rest = jax.lax.scan(step, (cache, token), jnp.arange(1, draft_length))

        def rows(first, others):  # [B, ...] and [K-1, B, ...] to [B, K, ...]
            return jnp.concatenate([first[None], others]).swapaxes(0, 1)

        tokens, raw_logits = rows(token, rest[0]), rows(raw, rest[1])
        logits = raw_logits if sampling.greedy else rows(processed, rest[2])
        states = None
        if with_hidden:
            final, cache = model(last[:, None], cache)
            states = jnp.concatenate([rest[3].swapaxes(0, 1), final], axis=1)
        return Draft(tokens, logits, raw_logits, states), cache

"""Drafting with a model, one token after another: the pair's draft model, and the rollout that a self-draft shares."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.decoding.adaptive import CATCH_UP
from kljudge_jax.decoding.drafter import Caches, Context, Draft, Models, Request
from kljudge_jax.decoding.sampling import Sampling, draw, process_logits
from kljudge_jax.errors import InputError
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.verification.distributions import Normaliser


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """Drafts with the pair's draft model.

    A fixed length is one `lax.scan`; one that adapts is a `lax.while_loop`, which ends when no row wants more.
    """

    uses_draft_model: ClassVar[bool] = True
    has_hidden: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    def check(self, pair: ModelPair) -> None:
        if pair.draft is None:
            raise InputError(
                "the pair has no draft model: load one, draft with PromptLookup() or SelfDraft(layers), or use "
                "verifier=None for plain decoding"
            )

    def cost(self, pair: ModelPair) -> float:
        assert pair.draft is not None
        return bytes_read(pair.draft) / bytes_read(pair.target)

    def propose(
        self, models: Models, caches: Caches, context: Context, sampling: Sampling, request: Request
    ) -> tuple[Draft, Caches]:
        """See `Drafter`. The draft's cache may lack the token before the last one, and all those before it that came of
        cycles without a draft."""
        assert models.draft is not None and caches.draft is not None
        hidden, cache = _consume_last(models.draft, caches.draft, context, request)
        draft, cache = roll_out(models.draft, cache, hidden, context, sampling, request)
        return draft, caches._replace(draft=cache)


def bytes_read(model: Transformer) -> int:
    """The bytes of the weights that one token multiplies: all but an embedding table that is not the head as well."""
    sizes = {name: leaf.nbytes for name, leaf in parameters(model).items()}
    unread = 0 if model.config.tied_head else sum(n for name, n in sizes.items() if name.startswith("embedding."))
    return sum(sizes.values()) - unread


def _consume_last(model: Transformer, cache: KVCache, context: Context, request: Request):
    """The state after each row's last token, `[B, H]`, and the cache with all of the row."""

    def consume(width, cache):
        # A row that is shorter than the width takes stale tokens after its own, whose slots the next step overwrites.
        start = jnp.maximum(context.consumed + 1 - width, 0)
        tokens = jnp.take_along_axis(context.sequence, start[:, None] + jnp.arange(width)[None], axis=1)
        hidden, cache = model(tokens, cache.at_length(start))
        last = (context.consumed - start)[:, None, None]
        return jnp.take_along_axis(hidden, last, axis=1)[:, 0], cache.at_length(context.consumed + 1)

    # When the whole last draft was accepted, its last token is not in the cache yet. Instead of asking, this always
    # takes two tokens: at one row a product costs what it costs at two.
    if request.adaptive is None or request.adaptive.minimum:
        return consume(2, cache)

    # After cycles without a draft it lacks those tokens as well, which are taken in pieces.
    def behind(cache):
        return context.consumed - cache.length

    def catch_up(cache):
        start = jnp.clip(cache.length, 0, jnp.maximum(context.consumed + 1 - CATCH_UP, 0))
        tokens = jnp.take_along_axis(context.sequence, start[:, None] + jnp.arange(CATCH_UP)[None], axis=1)
        _, cache = model(tokens, cache.at_length(start))
        return cache.at_length(jnp.minimum(start + CATCH_UP, context.consumed + 1))

    cache = jax.lax.while_loop(lambda cache: jnp.max(behind(cache)) > 1, catch_up, cache)
    return consume(2, cache)


def roll_out(
    model: Transformer, cache: KVCache, hidden: jax.Array, context: Context, sampling: Sampling, request: Request
) -> tuple[Draft, KVCache]:
    """Draws a draft token after token.

    Args:
      model: what drafts.
      cache: its cache, the last committed token consumed.
      hidden: `[B, H]`, the state after that token.
      context, sampling, request: as for a drafter.
    """
    draw_all = _roll_out_all if request.adaptive is None else _roll_out_wanted
    return draw_all(model, cache, hidden, context, sampling, request)


def _choose(model, hidden, keys, step, sampling):
    """Draft token `step` int32 `[B]` with its raw and processed logits `[B, V]`."""
    raw = model.logits(hidden)
    processed = process_logits(raw, sampling)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(draw, (0, 0, None))(step_keys, processed, sampling), raw, processed


def _roll_out_all(model, cache, hidden, context, sampling, request):
    def step(carry, i):
        cache, token = carry
        hidden, cache = model(token[:, None], cache)
        token, raw, processed = _choose(model, hidden[:, 0], context.keys, i, sampling)
        return (cache, token), (token, raw, processed if not sampling.greedy else None, hidden[:, 0])

    token, raw, processed = _choose(model, hidden, context.keys, 0, sampling)
    (cache, last), rest = jax.lax.scan(step, (cache, token), jnp.arange(1, request.draft_length))

    def rows(first, others):  # [B, ...] and [K-1, B, ...] to [B, K, ...]
        return jnp.concatenate([first[None], others]).swapaxes(0, 1)

    tokens, raw_logits = rows(token, rest[0]), rows(raw, rest[1])
    logits = None if sampling.greedy else rows(processed, rest[2])
    states = None
    if request.with_hidden:
        final, cache = model(last[:, None], cache)
        states = jnp.concatenate([rest[3].swapaxes(0, 1), final], axis=1)
    return Draft(tokens, jnp.full_like(token, request.draft_length), logits, raw_logits, states), cache


class _Rollout(NamedTuple):
    """A draft in the making; `step` tokens of it are drawn."""

    step: jax.Array
    going: jax.Array  # bool [B], the row has proposed every token so far
    counts: jax.Array  # int32 [B], how many it has proposed
    token: jax.Array
    cache: KVCache
    tokens: jax.Array
    logits: jax.Array | None
    raw_logits: jax.Array
    hidden: jax.Array | None

    @classmethod
    def start(cls, model, cache, context, sampling, request):
        batch, length = context.consumed.shape[0], request.draft_length
        logits = jnp.zeros((batch, length, model.config.vocab_size))
        return cls(
            step=jnp.int32(0),
            going=jnp.ones((batch,), bool),
            counts=jnp.zeros((batch,), jnp.int32),
            token=jnp.zeros((batch,), jnp.int32),
            cache=cache,
            tokens=jnp.zeros((batch, length), jnp.int32),
            logits=None if sampling.greedy else logits,
            raw_logits=logits,
            hidden=jnp.zeros((batch, length, model.config.hidden_size), model.dtype) if request.with_hidden else None,
        )

    def as_draft(self) -> Draft:
        return Draft(self.tokens, self.counts, self.logits, self.raw_logits, self.hidden)


def _roll_out_wanted(model, cache, hidden, context, sampling, request):
    confidence = request.adaptive.confidence

    def put(buffer, value, at):
        return None if buffer is None else jax.lax.dynamic_update_index_in_dim(buffer, value, at, axis=1)

    def propose(draft: _Rollout, hidden) -> _Rollout:
        token, raw, processed = _choose(model, hidden, context.keys, draft.step, sampling)
        going = draft.going & (draft.step < context.wanted)
        if confidence:
            # Decided before the token is drawn: to drop a token for what it is would bias what is left. NaN goes on,
            # so that a broken model is seen and not taken for an unsure one.
            going &= ~(Normaliser.of(raw).top < confidence)
        return draft._replace(
            step=draft.step + 1,
            going=going,
            counts=draft.counts + going.astype(jnp.int32),
            token=token,
            tokens=put(draft.tokens, token, draft.step),
            logits=put(draft.logits, processed, draft.step),
            raw_logits=put(draft.raw_logits, raw, draft.step),
        )

    def consume(draft: _Rollout) -> tuple[jax.Array, _Rollout]:
        hidden, cache = model(draft.token[:, None], draft.cache)
        hidden = hidden[:, 0]
        return hidden, draft._replace(cache=cache, hidden=put(draft.hidden, hidden, draft.step - 1))

    def unfinished(draft: _Rollout):
        return (draft.step < request.draft_length) & jnp.any(draft.going & (draft.step < context.wanted))

    def step(draft: _Rollout):
        hidden, draft = consume(draft)
        return propose(draft, hidden)

    draft = propose(_Rollout.start(model, cache, context, sampling, request), hidden)
    draft = jax.lax.while_loop(unfinished, step, draft)
    if request.with_hidden:
        _, draft = consume(draft)
    return draft.as_draft(), draft.cache

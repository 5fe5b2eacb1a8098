"""Drafting with a model, one token after another: the pair's draft model, and the rollout that a self-draft shares."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Features, Models, Request, Window
from kljudge_jax.core.sampling import Sampling, draw, process_logits
from kljudge_jax.core.target import at_places, check_rollback, consume, logits_of, new_cache
from kljudge_jax.errors import InputError
from kljudge_jax.verification.distributions import Normaliser

# How many tokens at a time a draft takes that was not asked for some cycles.
CATCH_UP = 16


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """Drafts with the pair's draft model, any `Model`; what it remembers is that model's cache.

    A fixed length is one `lax.scan`; one that adapts is a `lax.while_loop`, which ends when no row wants more.
    """

    layers: ClassVar[tuple[int, ...]] = ()
    uses_draft_model: ClassVar[bool] = True
    has_hidden: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    def check(self, pair: Any) -> None:
        """Raises InputError if it cannot draft for this pair."""
        if pair.draft is None:
            raise InputError(
                "the pair has no draft model: load one, draft with PromptLookup() or SelfDraft(layers), or use "
                "verifier=None for plain decoding"
            )

    def reads(self, pair: Any) -> Any:
        """The model whose weights one more draft token takes."""
        return pair.draft

    def init(self, models: Models, batch: int, slots: int) -> Any:
        """See `Drafter`: the draft model's cache."""
        return new_cache(models.draft, batch, slots, "draft")

    def observe(self, models: Models, state: Any, window: Window) -> Any:
        """See `Drafter`. It consumes prompts with the target; what a cycle commits it takes when it drafts again."""
        end = window.start + window.valid
        if not window.prompt:
            # It may have consumed less, where no row wanted a draft.
            return state.at_length(jnp.minimum(state.length, end))
        _, cache = consume(models.draft, window.tokens, state.at_length(window.start), whose="draft")
        return cache.at_length(jnp.where(window.valid > 0, end, state.length))

    def propose(
        self, models: Models, target_cache: Any, state: Any, context: Context, request: Request
    ) -> tuple[Draft, Any, Any]:
        """See `Drafter`. Its cache may lack the token before the last one, and all those before it that came of cycles
        without a draft."""
        # A draft of which nothing is kept, and where tokens are caught up with, those of the first piece.
        again = CATCH_UP - 1 if request.skips else 0
        check_rollback(state, request.draft_length + request.with_hidden + again, "draft")
        state, cache = _consume_last(models.draft, state, context, request)
        draft, cache = roll_out(models.draft, cache, state, context, request)
        return draft, target_cache, cache


def _consume_last(model: Any, cache: Any, context: Context, request: Request):
    """What the model computes for each row's last token, and the cache with all of the row."""

    def taken(start, width):
        return jnp.take_along_axis(context.sequence, start[:, None] + jnp.arange(width)[None], axis=1)

    # After cycles without a draft it lacks those tokens too, which are taken in pieces.
    def catch_up(cache):
        width = min(CATCH_UP, cache.slots)
        start = jnp.clip(cache.length, 0, jnp.maximum(context.consumed + 1 - width, 0))
        _, cache = consume(model, taken(start, width), cache.at_length(start), whose="draft")
        return cache.at_length(jnp.minimum(start + width, context.consumed + 1))

    if request.skips:
        cache = jax.lax.while_loop(lambda cache: jnp.max(context.consumed - cache.length) > 1, catch_up, cache)

    # When the whole last draft was accepted, its last token is not in the cache yet. Instead of asking, this always
    # takes two tokens: at one row a product costs what it costs at two. A row of one token takes a stale one after its
    # own, whose slot the next step overwrites.
    start = jnp.maximum(context.consumed - 1, 0)
    features, cache = consume(model, taken(start, 2), cache.at_length(start), whose="draft")
    last = at_places(features, (context.consumed - start)[:, None])
    return last, cache.at_length(context.consumed + 1)


def roll_out(model: Any, cache: Any, last: Features, context: Context, request: Request) -> tuple[Draft, Any]:
    """Draws a draft token after token.

    Args:
      model: what drafts.
      cache: its cache, each row's last committed token consumed.
      last: what the model computed for that token, `[B, 1, ...]`.
      context, request: as for a drafter.
    """
    draw_all = _roll_out_wanted if request.shortens else _roll_out_all
    return draw_all(model, cache, last, context, request)


def _choose(model: Any, features: Features, keys: jax.Array, step: Any, sampling: Sampling):
    """Draft token `step` int32 `[B]` with its raw and processed logits `[B, V]`."""
    raw = logits_of(model, features, "draft")[:, 0]
    processed = process_logits(raw, sampling)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(draw, (0, 0, None))(step_keys, processed, sampling), raw, processed


def _roll_out_all(model, cache, last, context, request):
    sampling = context.sampling

    def step(carry, i):
        cache, token = carry
        features, cache = consume(model, token[:, None], cache, whose="draft")
        token, raw, processed = _choose(model, features, context.keys, i, sampling)
        state = features.hidden if request.with_hidden else None
        return (cache, token), (token, raw, processed if not sampling.greedy else None, state)

    token, raw, processed = _choose(model, last, context.keys, 0, sampling)
    (cache, final), rest = jax.lax.scan(step, (cache, token), jnp.arange(1, request.draft_length))

    def rows(first, others):  # [B, ...] and [K-1, B, ...] to [B, K, ...]
        return jnp.concatenate([first[None], others]).swapaxes(0, 1)

    tokens, raw_logits = rows(token, rest[0]), rows(raw, rest[1])
    logits = None if sampling.greedy else rows(processed, rest[2])
    states = None
    if request.with_hidden and last.hidden is not None:
        features, cache = consume(model, final[:, None], cache, whose="draft")
        states = jnp.concatenate([rest[3][:, :, 0].swapaxes(0, 1), features.hidden], axis=1)
    return Draft(tokens, jnp.full_like(token, request.draft_length), logits, raw_logits, states), cache


class _Rollout(NamedTuple):
    """A draft in the making; `step` tokens of it are drawn."""

    step: jax.Array
    going: jax.Array  # bool [B], the row has proposed every token so far
    counts: jax.Array  # int32 [B], how many it has proposed
    token: jax.Array
    cache: Any
    tokens: jax.Array
    logits: jax.Array | None
    raw_logits: jax.Array
    hidden: jax.Array | None

    @classmethod
    def start(cls, model: Any, cache: Any, last: Features, context: Context, request: Request) -> _Rollout:
        none, length = 0 * context.consumed, request.draft_length
        logits = jnp.broadcast_to(none[:, None, None].astype(jnp.float32), (none.shape[0], length, model.vocab_size))
        hidden = None
        if request.with_hidden and last.hidden is not None:
            hidden = jnp.repeat(jnp.zeros_like(last.hidden), length, axis=1)
        return cls(
            step=jnp.max(none),
            going=none == 0,
            counts=none,
            token=none,
            cache=cache,
            tokens=jnp.broadcast_to(none[:, None], (none.shape[0], length)),
            logits=None if context.sampling.greedy else logits,
            raw_logits=logits,
            hidden=hidden,
        )

    def as_draft(self) -> Draft:
        return Draft(self.tokens, self.counts, self.logits, self.raw_logits, self.hidden)


def _roll_out_wanted(model, cache, last, context, request):
    def put(buffer, value, at):
        return None if buffer is None else jax.lax.dynamic_update_index_in_dim(buffer, value, at, axis=1)

    def propose(draft: _Rollout, features: Features) -> _Rollout:
        token, raw, processed = _choose(model, features, context.keys, draft.step, context.sampling)
        going = draft.going & (draft.step < context.wanted)
        if request.confidence:
            # Decided before the token is drawn: to drop a token for what it is would bias what is left. NaN goes on,
            # so that a broken model is seen and not taken for an unsure one.
            going &= ~(Normaliser.of(raw).top < request.confidence)
        return draft._replace(
            step=draft.step + 1,
            going=going,
            counts=draft.counts + going.astype(jnp.int32),
            token=token,
            tokens=put(draft.tokens, token, draft.step),
            logits=put(draft.logits, processed, draft.step),
            raw_logits=put(draft.raw_logits, raw, draft.step),
        )

    def take(draft: _Rollout) -> tuple[Features, _Rollout]:
        features, cache = consume(model, draft.token[:, None], draft.cache, whose="draft")
        hidden = draft.hidden
        if hidden is not None and features.hidden is not None:
            hidden = put(hidden, features.hidden[:, 0], draft.step - 1)
        return features, draft._replace(cache=cache, hidden=hidden)

    def unfinished(draft: _Rollout):
        return (draft.step < request.draft_length) & jnp.any(draft.going & (draft.step < context.wanted))

    def step(draft: _Rollout):
        features, draft = take(draft)
        return propose(draft, features)

    draft = propose(_Rollout.start(model, cache, last, context, request), last)
    draft = jax.lax.while_loop(unfinished, step, draft)
    if request.with_hidden:
        _, draft = take(draft)
    return draft.as_draft(), draft.cache

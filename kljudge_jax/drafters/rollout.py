"""A draft token after another: the loop that every drafter shares which draws them one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Features, Request
from kljudge_jax.core.sampling import Sampling, draw, process_logits
from kljudge_jax.core.target import consume, logits_of
from kljudge_jax.verification.distributions import Normaliser


class Chain(NamedTuple):
    """What a rollout asks of a model, or of a head.

    Attributes:
      step: takes tokens int32 `[B]` and the state that goes through the chain: features `[B, 1, ...]` after them, and
        the state.
      logits: of features `[B, 1, ...]`, f32 `[B, 1, V]`, or `[B, 1, R]` of the tokens that it knows.
      known: int32 `[R]`, those tokens, ascending; None is all. Tokens are drawn among them, and what was computed of
        each is held for them alone: the vocabulary is passed over once, and not for each token.
      spread: logits `[..., R]` as those of all tokens, `[..., V]`, where `known` is given.
    """

    step: Callable[[jax.Array, Any], tuple[Features, Any]]
    logits: Callable[[Features], jax.Array]
    known: jax.Array | None = None
    spread: Callable[[jax.Array], jax.Array] = lambda logits: logits


def chain_of(model: Any) -> Chain:
    """That of a model, whose state is its cache."""
    return Chain(
        lambda token, cache: consume(model, token[:, None], cache, whose="draft"),
        lambda features: logits_of(model, features, "draft"),
    )


def roll_out(chain: Chain, state: Any, last: Features, context: Context, request: Request) -> tuple[Draft, Any]:
    """Draws a draft token after token.

    Args:
      chain: what drafts.
      state: its state, each row's last committed token consumed.
      last: what it computed for that token, `[B, 1, ...]`.
      context, request: as for a drafter.
    """
    draw_all = _roll_out_wanted if request.shortens else _roll_out_all
    draft, state = draw_all(chain, state, last, context, request)
    if chain.known is None:
        return draft, state
    raw, logits = (None if x is None else chain.spread(x) for x in (draft.raw_logits, draft.logits))
    return dataclasses.replace(draft, raw_logits=raw, logits=logits), state


def _choose(chain: Chain, features: Features, keys: jax.Array, step: Any, sampling: Sampling):
    """Draft token `step` int32 `[B]` with its raw and processed logits `[B, R]`."""
    raw = chain.logits(features)[:, 0]
    processed = process_logits(raw, sampling)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    token = jax.vmap(draw, (0, 0, None))(step_keys, processed, sampling)
    if chain.known is not None:
        token = jnp.take(chain.known, token, mode="clip")
    return token, raw, processed


def _roll_out_all(chain, state, last, context, request):
    sampling = context.sampling

    def step(carry, i):
        state, token = carry
        features, state = chain.step(token, state)
        token, raw, processed = _choose(chain, features, context.keys, i, sampling)
        hidden = features.hidden if request.with_hidden else None
        return (state, token), (token, raw, processed if not sampling.greedy else None, hidden)

    token, raw, processed = _choose(chain, last, context.keys, 0, sampling)
    (state, final), rest = jax.lax.scan(step, (state, token), jnp.arange(1, request.draft_length))

    def rows(first, others):  # [B, ...] and [K-1, B, ...] to [B, K, ...]
        return jnp.concatenate([first[None], others]).swapaxes(0, 1)

    tokens, raw_logits = rows(token, rest[0]), rows(raw, rest[1])
    logits = None if sampling.greedy else rows(processed, rest[2])
    hidden = None
    if request.with_hidden and last.hidden is not None:
        features, state = chain.step(final, state)
        hidden = jnp.concatenate([rest[3][:, :, 0].swapaxes(0, 1), features.hidden], axis=1)
    return Draft(tokens, jnp.full_like(token, request.draft_length), logits, raw_logits, hidden), state


class _Rollout(NamedTuple):
    """A draft in the making; `step` tokens of it are drawn."""

    step: jax.Array
    going: jax.Array  # bool [B], the row has proposed every token so far
    counts: jax.Array  # int32 [B], how many it has proposed
    token: jax.Array
    state: Any
    tokens: jax.Array
    logits: jax.Array | None
    raw_logits: jax.Array
    hidden: jax.Array | None

    @classmethod
    def start(cls, chain: Chain, state: Any, last: Features, context: Context, request: Request) -> _Rollout:
        none, length = 0 * context.consumed, request.draft_length
        vocab_size = jax.eval_shape(chain.logits, last).shape[-1]
        logits = jnp.broadcast_to(none[:, None, None].astype(jnp.float32), (none.shape[0], length, vocab_size))
        hidden = None
        if request.with_hidden and last.hidden is not None:
            hidden = jnp.repeat(jnp.zeros_like(last.hidden), length, axis=1)
        return cls(
            step=jnp.max(none),
            going=none == 0,
            counts=none,
            token=none,
            state=state,
            tokens=jnp.broadcast_to(none[:, None], (none.shape[0], length)),
            logits=None if context.sampling.greedy else logits,
            raw_logits=logits,
            hidden=hidden,
        )

    def as_draft(self) -> Draft:
        return Draft(self.tokens, self.counts, self.logits, self.raw_logits, self.hidden)


def _roll_out_wanted(chain, state, last, context, request):
    def put(buffer, value, at):
        return None if buffer is None else jax.lax.dynamic_update_index_in_dim(buffer, value, at, axis=1)

    def propose(draft: _Rollout, features: Features) -> _Rollout:
        token, raw, processed = _choose(chain, features, context.keys, draft.step, context.sampling)
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
        features, state = chain.step(draft.token, draft.state)
        hidden = draft.hidden
        if hidden is not None and features.hidden is not None:
            hidden = put(hidden, features.hidden[:, 0], draft.step - 1)
        return features, draft._replace(state=state, hidden=hidden)

    def unfinished(draft: _Rollout):
        return (draft.step < request.draft_length) & jnp.any(draft.going & (draft.step < context.wanted))

    def step(draft: _Rollout):
        features, draft = take(draft)
        return propose(draft, features)

    draft = propose(_Rollout.start(chain, state, last, context, request), last)
    draft = jax.lax.while_loop(unfinished, step, draft)
    if request.with_hidden:
        _, draft = take(draft)
    return draft.as_draft(), draft.state

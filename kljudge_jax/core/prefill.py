"""Prompts, consumed by the target and shown to the drafter in chunks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.core.drafting import observe
from kljudge_jax.core.protocols import Drafter, Models, Window, layers_of
from kljudge_jax.core.rows import holds_caches_alone, least_rollback, map_state, put
from kljudge_jax.core.state import Prefill
from kljudge_jax.core.target import consume
from kljudge_jax.varying import varying_as


def prefill(
    models: Models,
    drafter: Drafter | None,
    cache: Any,
    state: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    shared: jax.Array | int = 0,
    *,
    plan: Prefill,
) -> tuple[Any, Any]:
    """Consumes every prompt but its last token, which is the first one that a cycle consumes.

    Args:
      models: target and draft.
      drafter: what proposes; None in plain decoding.
      cache: the target's, empty, of at least P slots.
      state: the drafter's.
      prompts: int32 `[B, P]`, padded on the right; P at most a chunk, or a multiple of one.
      lengths: int32 `[B]`, at least 1.
      shared: int32 `[]`, how many tokens all rows begin with alike, a multiple of the chunk: they are computed once.
      plan: how.

    Returns:
      the cache and the state, `lengths - 1` tokens of each row consumed.
    """
    width = prompts.shape[1]
    # Padding is consumed too, more of it in a batch than some caches can take back.
    if plan.one_by_one or least_rollback((cache, state)) is not None:
        # From what the first row holds: the tokens that all begin with, and stale slots beyond, as those of padding.
        def enter(i, carry):
            first = jnp.where(i == 0, 0, shared)
            return enter_row(models, drafter, *carry, prompts[i], lengths[i], 0 * i, (i,), first, plan=plan)

        return jax.lax.fori_loop(0, len(prompts), enter, (cache, state))
    chunk, first = min(width, plan.chunk), jnp.asarray(0)
    if len(prompts) > 1 and width > chunk:  # else nothing is shared, and a loop more would be compiled
        first = jnp.asarray(shared)
        row, known = jax.tree.map(lambda x: x[:1], (cache, state))
        one = _consume(models, drafter, row, known, prompts[:1], lengths[:1], 0, first, chunk)
        cache, state = jax.tree.map(lambda x, rows: jnp.broadcast_to(x, rows.shape), one, (cache, state))
    return _consume(models, drafter, cache, state, prompts, lengths, first, jnp.max(lengths) - 1, chunk)


def in_chunks(given: Any, plan: Prefill) -> jax.Array:
    """Prompts int32 `[B, P]` padded to a multiple of the chunk, where they are longer than one."""
    prompts = jnp.asarray(given, jnp.int32)
    width = prompts.shape[1]
    return prompts if width <= plan.chunk else jnp.pad(prompts, ((0, 0), (0, -width % plan.chunk)))


def enter_row(
    models: Models,
    drafter: Drafter | None,
    cache: Any,
    state: Any,
    prompt: jax.Array,
    length: jax.Array,
    source: jax.Array,
    rows: tuple[jax.Array, ...],
    first: jax.Array | int,
    spoilt: jax.Array | bool = False,
    *,
    plan: Prefill,
) -> tuple[Any, Any]:
    """Consumes one prompt, and puts it in place of some rows.

    Args:
      models, drafter, cache, state: as in `prefill`.
      prompt: int32 `[P]`.
      length: int32 `[]`.
      source: int32 `[]`, the row that holds its first tokens already.
      rows: int32 `[]` each, where it goes.
      first: int32 `[]`, how many tokens `source` holds, a multiple of the chunk.
      spoilt: bool `[]`, `source` may hold what is no number, of which a model's mask may not rid it: nothing is kept.
      plan: how.
    """
    width = prompt.shape[0]
    chunk, first = min(width, plan.chunk), jnp.where(spoilt, 0, first)
    rollback = least_rollback((cache, state))
    if rollback is not None:
        # Such a cache, a ring for instance, has lost what all begin with, and takes back no more padding than that.
        chunk = max(n for n in range(1, min(chunk, rollback + 1) + 1) if width % n == 0)
        first = first * 0
        part = models.target.init_cache(1, width), () if drafter is None else drafter.init(models, 1, width)
    elif drafter is not None:
        first = first if holds_caches_alone(state) else first * 0  # what else it remembers it has to see again
        fresh = drafter.init(models, 1, width)
        known = map_state(lambda x, _: x.take(source, width).at_length(first[None]), lambda _, new: new, state, fresh)
        part = cache.take(source, width), known
    else:
        part = cache.take(source, width), state
    if rollback is None and spoilt is not False:
        empty = models.target.init_cache(1, width), () if drafter is None else drafter.init(models, 1, width)
        part = jax.tree.map(lambda new, old: jnp.where(spoilt, new, old), empty, part)
    own, known = varying_as(part, jnp.asarray(length))
    end = jnp.asarray(length) - 1
    taken, known = _consume(models, drafter, own, known, prompt[None], end[None] + 1, first, end, chunk)
    for row in rows:
        cache, state = cache.put(row, taken), put(state, row, known)
    return cache, state


def _consume(models, drafter, cache, state, prompts, lengths, first, end, chunk):
    """The cache and the state after the chunks that hold tokens `first` to `end` of the prompts."""
    layers = layers_of(drafter)
    # What follows the last token is no part of the prompt.
    following = jnp.pad(prompts[:, 1:], ((0, 0), (0, 1)))

    def body(i, carry):
        cache, state = carry
        start = jnp.full_like(lengths, 0) + i * chunk
        tokens, next_tokens = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (prompts, following))
        features, cache = consume(models.target, tokens, cache.at_length(start), layers)
        if drafter is not None:
            valid = jnp.clip(lengths - 1 - start, 0, chunk)
            window = Window(start, tokens, next_tokens, features, valid, prompt=True)
            state = observe(drafter, models, state, window)
        return cache, state

    cache, state = jax.lax.fori_loop(first // chunk, (end + chunk - 1) // chunk, body, (cache, state))
    # Short prompts of a batch consume padding beyond their end: stale slots that later tokens overwrite.
    return cache.at_length(lengths - 1), state

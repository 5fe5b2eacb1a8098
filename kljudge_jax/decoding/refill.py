"""New prompts in the slots of rows that have ended."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.decoding.drafter import Caches, Models
from kljudge_jax.decoding.score import CPU_CHUNK, PREFILL_CHUNK, prefill_from
from kljudge_jax.decoding.state import LoopState, Settings
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.packed import Packed, unpack
from kljudge_jax.models.transformer import Transformer


class Entries(NamedTuple):
    """Prompts and where they go; as many places as there are slots B, so that any number makes one program.

    Attributes:
      prompts: int32 `[B, P]`, padded on the right.
      lengths: int32 `[B]`, at least 1.
      keys: `[B]`.
      budget: int32 `[B]`.
      slots: int32 `[B]`, the row of the state that each goes to.
    """

    prompts: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    keys: jax.Array
    budget: jax.Array | np.ndarray
    slots: jax.Array


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def refill(
    target: Packed | Transformer,
    draft: Packed | Transformer | None,
    state: LoopState,
    entries: Entries,
    count: jax.Array,
    shared_chunks: jax.Array,
    *,
    settings: Settings,
) -> LoopState:
    """Consumes the first `count` int32 `[]` entries, each in its slot, one after another. `state` is donated.

    What the state holds of other rows is not touched. `shared_chunks` int32 `[]` is how many whole chunks all prompts
    of the run begin with alike: a slot holds their keys and values from the prompt before. A prompt alone is not padded
    to the length of another, which on a CPU, where a token costs the same in any batch, makes it cheaper.
    """

    models = Models(unpack(target), unpack(draft))

    def enter(i, state):
        entry = jax.tree.map(lambda x: x[i], entries)
        return _enter(*models, state, entry, shared_chunks, settings).placed(models)

    return jax.lax.fori_loop(0, count, enter, state)


def _enter(target, draft, state: LoopState, entry: Entries, shared_chunks, settings: Settings) -> LoopState:
    slot, length = entry.slots, entry.lengths

    def consumed(model, cache):
        return None if model is None else _consumed(model, cache, entry, shared_chunks, settings.scorer.drafts)

    def put(values, value):
        return values.at[slot].set(value)

    # Buffers of new tokens and of cycles are stale from `count` and `cycles` on, so they stay as they are.
    return dataclasses.replace(
        state,
        sequence=jax.lax.dynamic_update_slice(state.sequence, entry.prompts[None], (slot, 0)),
        length=put(state.length, length),
        count=put(state.count, 0),
        caches=Caches(consumed(target, state.caches.target), consumed(draft, state.caches.draft)),
        running=put(state.running, entry.budget > 0),
        failed=put(state.failed, False),
        alone=put(state.alone, False),
        keys=put(state.keys, entry.keys),
        budget=put(state.budget, entry.budget),
        pace=None if state.pace is None else state.pace.entered(slot),
        cycles=put(state.cycles, 0),
    )


def _consumed(model, cache: KVCache, entry: Entries, shared_chunks, drafts: int) -> KVCache:
    """The cache with a prompt in its slot's rows: one for each of its several drafts."""
    first, width = entry.slots * drafts, entry.prompts.shape[0]

    # Only the prompt's places are read and written, whatever the capacity. Rows that lie on several devices are summed
    # with all but one masked: a slice at a place that is not known when it is compiled would gather all of them first.
    def taken(stored):
        if model.layout is None:
            return jax.lax.dynamic_slice(stored, (first, 0, 0, 0), (1, stored.shape[1], width, stored.shape[3]))
        own = (jnp.arange(stored.shape[0]) == first)[:, None, None, None]
        return jnp.sum(jnp.where(own, stored[:, :, :width], 0), axis=0, keepdims=True)

    part = KVCache(tuple(map(taken, cache.keys)), tuple(map(taken, cache.values)), jnp.zeros((1,), jnp.int32))
    chunk = min(width, CPU_CHUNK if jax.default_backend() == "cpu" else PREFILL_CHUNK)
    shared = shared_chunks * PREFILL_CHUNK
    prompts, lengths = jnp.asarray(entry.prompts)[None], jnp.asarray(entry.lengths)[None]
    part = prefill_from(model, part, prompts, lengths, shared, chunk)

    def put(stored, new):
        return jax.lax.dynamic_update_slice(stored, jnp.repeat(new, drafts, axis=0), (first, 0, 0, 0))

    length = jax.lax.dynamic_update_slice(cache.length, jnp.repeat(part.length, drafts), (first,))
    return KVCache(tuple(map(put, cache.keys, part.keys)), tuple(map(put, cache.values, part.values)), length)

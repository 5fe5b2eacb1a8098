"""How many slots the caches of a run have at a time: XLA's attention reads every slot there is, written or not.

So the caches grow with the answers, from one bucket to the next, between two blocks of cycles. A bucket is one more
program of cycles, compiled when an answer first needs it. The two other ways cost more: to switch between slices of a
whole cache makes a GPU wait for the host in every layer of every pass, and holds all buckets in one program that
compiles as many times as long before the first token; a slice as long as the bucket in a program of its own compiles as
often as this, and copies what it cuts out, where XLA does not fuse the cut into the product. Here no product sees
anything but a whole array, and to grow takes one copy of the cache for each doubling.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kljudge_jax.decoding.draft import bytes_read
from kljudge_jax.kernels.attention import is_native
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.parallel.layout import Layout

_FIRST = 256

# The first bucket is as large as a cache may be that adds this share to the bytes a pass reads anyhow: below it a
# program more would take longer to compile than it saves.
_UNFELT = 1 / 64


def cache_buckets(target: Transformer, draft: Transformer | None, rows: int, capacity: int) -> tuple[int, ...]:
    """The sizes of cache for `rows` rows that may need up to `capacity` slots, ascending, `capacity` the last.

    Powers of two, unless attention reads only what is written, as it does where it is native.
    """
    models = [model for model in (target, draft) if model is not None]
    slots = [jax.eval_shape(lambda model=model: KVCache.create(model.config, rows, 1, model.dtype)) for model in models]
    if all(is_native(model.storage.local, slot.keys[0]) for model, slot in zip(models, slots, strict=True)):
        return (capacity,)
    a_slot = sum(leaf.size * leaf.dtype.itemsize for slot in slots for leaf in (*slot.keys, *slot.values))
    unfelt = _UNFELT * sum(map(bytes_read, models)) / a_slot
    bucket, buckets = _FIRST, []
    while 3 * bucket <= 2 * capacity:
        if 2 * bucket > unfelt:
            buckets.append(bucket)
        bucket *= 2
    return (*buckets, capacity)


def resized(cache: KVCache, slots: int, layout: Layout | None) -> KVCache:
    """The cache with so many slots a row, the first of them as they were. The one given is deleted, layer by layer, so
    that no more than a layer is held twice."""

    def moved(stored):
        new = _resized(stored, slots=slots, layout=layout)
        stored.delete()
        return new

    return KVCache(tuple(map(moved, cache.keys)), tuple(map(moved, cache.values)), cache.length)


@functools.partial(jax.jit, static_argnames=("slots", "layout"))
def _resized(stored, *, slots, layout):
    more = max(0, slots - stored.shape[2])
    stored = jnp.pad(stored[:, :, :slots], ((0, 0), (0, 0), (0, more), (0, 0)))
    return stored if layout is None else layout.attention(stored)

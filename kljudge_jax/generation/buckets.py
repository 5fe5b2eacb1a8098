"""How many slots the caches of a run have at a time: XLA's attention reads every slot there is, written or not.

Where attention reads what is written, natively on a CPU, on a GPU, and from 4,096 slots on a TPU, a cache has all that
a run may need. Elsewhere the caches grow with the answers, from one bucket to the next, between two blocks of cycles. A
bucket is one more program of cycles, compiled when an answer first needs it. The two other ways cost more: to switch
between slices of a whole cache makes a GPU wait for the host in every layer of every pass, and holds all buckets in one
program that compiles as many times as long before the first token; a slice as long as the bucket in a program of its
own compiles as often as this, and copies what it cuts out, where XLA does not fuse the cut into the product. Here no
product sees anything but a whole array, and to grow takes one copy of the cache for each doubling.
"""

from __future__ import annotations

from typing import Any

import jax

from kljudge_jax.generation.costs import bytes_read

_FIRST = 256

# The first bucket is as large as a cache may be that adds this share to the bytes a pass reads anyhow: below it a
# program more would take longer to compile than it saves.
_UNFELT = 1 / 64


def cache_buckets(target: Any, draft: Any, rows: int, capacity: int) -> tuple[int, ...]:
    """The sizes of cache for `rows` rows that may need up to `capacity` slots, ascending, `capacity` the last.

    Powers of two, up to where attention reads only what is written.
    """
    models = [model for model in (target, draft) if hasattr(model, "init_cache")]

    def caches(slots: int) -> list[Any]:
        return [jax.eval_shape(lambda model=model: model.init_cache(rows, slots)) for model in models]

    def reads_all(slots: int) -> bool:
        return any(getattr(cache, "reads_all", True) for cache in caches(slots))

    slots = caches(1)
    a_slot = sum(leaf.size * leaf.dtype.itemsize for slot in slots for leaf in jax.tree.leaves(slot) if leaf.ndim > 1)
    unfelt = _UNFELT * sum(map(bytes_read, models)) / a_slot
    bucket, buckets = _FIRST, []
    while 3 * bucket <= 2 * capacity and reads_all(bucket):
        if 2 * bucket > unfelt:
            buckets.append(bucket)
        bucket *= 2
    return (*buckets, capacity)

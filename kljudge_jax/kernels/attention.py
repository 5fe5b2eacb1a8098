"""Attention of new tokens over a cache, on a CPU: only what was written is read, and the cache is written in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.place import Place
from kljudge_jax.varying import varying_as


def is_native(place: Place, keys: jax.Array) -> bool:
    """Whether `cached_attention` can be called for a model that lies there and such a cache."""
    return keys.dtype == jnp.float32 and place.native


def cached_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    start: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    window: int,
    softcap: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes new keys and values into a cache, and attends to all that a query can see.

    The sums behind one query run in one order, whatever stands beside it. Softmax is in float32.

    Args:
      query: `[B, T, N, D]`, scaled.
      key, value: `[B, T, G, D]`.
      start: int32 `[B]`, the slot of each row's first new token; a query sees all slots up to its own.
      keys, values: f32 `[B, G, S, D]`.
      window: how many slots a query sees, its own included; 0 is all.
      softcap: scores are squeezed to this size; 0 is off.

    Returns:
      f32 `[B, T, N, D]`, and the cache.
    """
    library()  # compiled and made known to XLA
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (query, keys, values)]
    call = jax.ffi.ffi_call("kljudge_attention", results, input_output_aliases={4: 1, 5: 2})
    found = call(*wide, start, keys, values, window=np.int64(window), softcap=np.float32(softcap))
    out, keys, values = varying_as(found, query)
    return out, keys, values

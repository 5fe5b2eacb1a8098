"""Grouped-query attention over keys and values that lie in arrays, by XLA's own products."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kljudge_jax.kernels.product import precision_of
from kljudge_jax.parallel.axes import HEADS
from kljudge_jax.parallel.layout import Layout

# Finite, so that a query that sees nothing (a padding row) gets a mean of stale values and not a NaN.
_MASKED = -1e30


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    slots: jax.Array,
    *,
    window: int = 0,
    softcap: float = 0.0,
    layout: Layout | None = None,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
) -> jax.Array:
    """What each query reads of the values that it can see. Scores and softmax are float32.

    Args:
      query: `[B, T, N, D]`, scaled.
      keys, values: `[B, G, S, D]`.
      positions: int32 `[B, T]`, of the queries.
      slots: int32 `[B or 1, T or 1, S]`, the positions of the keys.
      window: how many positions a query sees, its own included; 0 is all.
      softcap: scores are squeezed to this size; 0 is off.
      layout: where all this lies on a mesh; None is one device.
      key_scale, value_scale: f32 `[B, G, S]`, what keys and values are to be multiplied by; None is 1.

    Returns:
      `[B, T, N, D]`, of the queries' dtype.
    """
    distance = positions[:, :, None] - slots  # [B, T, S]
    visible = distance >= 0
    if window:
        visible &= distance < window

    exact = query.dtype if keys.dtype == jnp.int8 else keys.dtype
    grouped, keys, values = _by_groups(query, keys.shape[1], exact, layout), keys.astype(exact), values.astype(exact)
    kept = {"precision": precision_of(exact), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("bgrtd,bgsd->bgrts", grouped, keys, **kept)
    if key_scale is not None:
        scores = scores * key_scale[:, :, None, None]
    scores = jnp.where(visible[:, None, None], squeeze(scores, softcap), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    if value_scale is not None:
        weights = weights * value_scale[:, :, None, None]
    mixed = jnp.einsum("bgrts,bgsd->bgrtd", weights.astype(values.dtype), values, **kept)
    return _by_tokens(mixed, query, layout)


def attend_block(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    length: jax.Array,
    *,
    layout: Layout | None = None,
    scales: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """What the queries of a block read of a context and of the whole block, what comes after them too.

    Nothing is written: the block may reach past the last slot of the cache that holds the context.

    Args:
      query: `[B, T, N, D]`, scaled.
      key, value: `[B, T, G, D]`, of the block.
      keys, values: `[B, G, S, D]`, of the context.
      length: int32 `[B]`, how many of the S are the context's.
      layout: where all this lies on a mesh; None is one device.
      scales: f32 `[B, G, S]` each, what the context's keys and values are to be multiplied by; None is 1.

    Returns:
      `[B, T, N, D]`, of the queries' dtype.
    """
    slots = keys.shape[2]
    exact = query.dtype if keys.dtype == jnp.int8 else keys.dtype
    grouped = _by_groups(query, keys.shape[1], exact, layout)
    key, value = (_placed(x.swapaxes(1, 2), layout).astype(exact) for x in (key, value))
    kept = {"precision": precision_of(exact), "preferred_element_type": jnp.float32}
    known = jnp.einsum("bgrtd,bgsd->bgrts", grouped, keys.astype(exact), **kept)
    if scales is not None:
        known = known * scales[0][:, :, None, None]
    visible = jnp.arange(slots)[None] < length[:, None]
    known = jnp.where(visible[:, None, None, None], known, _MASKED)
    # One softmax over the scores of both: the keys themselves are not put side by side, which would copy the cache.
    own = jnp.einsum("bgrtd,bgsd->bgrts", grouped, key, **kept)
    weights = jax.nn.softmax(jnp.concatenate([known, own], axis=-1), axis=-1)
    known, own = weights[..., :slots], weights[..., slots:]
    if scales is not None:
        known = known * scales[1][:, :, None, None]
    mixed = jnp.einsum("bgrts,bgsd->bgrtd", known.astype(exact), values.astype(exact), **kept)
    mixed = mixed + jnp.einsum("bgrts,bgsd->bgrtd", own.astype(exact), value, **kept)
    return _by_tokens(mixed, query, layout)


def _by_groups(query: jax.Array, groups: int, dtype: jax.typing.DTypeLike, layout: Layout | None) -> jax.Array:
    """`[B, T, N, D]` to `[B, G, N/G, T, D]`: the query heads of a group are rows of one product, by `[B, G, S, D]`."""
    batch, length, heads, dim = query.shape
    grouped = split_by_heads(query.reshape(batch, length, heads * dim), layout)
    grouped = grouped.reshape(batch, length, groups, heads // groups, dim).transpose(0, 2, 3, 1, 4)
    return _placed(grouped.astype(dtype), layout)


def _by_tokens(mixed: jax.Array, query: jax.Array, layout: Layout | None) -> jax.Array:
    """The inverse, in the shape and dtype of the queries."""
    return _placed(mixed, layout).transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(query.dtype)


def _placed(x: jax.Array, layout: Layout | None) -> jax.Array:
    return x if layout is None else layout.attention(x)


def split_by_heads(x: jax.Array, layout: Layout | None) -> jax.Array:
    """Queries or what attention made of them, `[B, T, N D]`: split by heads, unless attention is split by rows."""
    return x if layout is None else layout.constrain(x, None if layout.spare else HEADS)


def squeeze(x: jax.Array, cap: float) -> jax.Array:
    """`cap tanh(x / cap)`, between `-cap` and `cap`; x itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x

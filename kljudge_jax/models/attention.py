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
    batch, length, heads, dim = query.shape
    groups = keys.shape[1]
    distance = positions[:, :, None] - slots  # [B, T, S]
    visible = distance >= 0
    if window:
        visible &= distance < window

    def placed(x):
        return x if layout is None else layout.attention(x)

    # The query heads of a group are rows of one product: [B, G, T * N/G, D] by [B, G, S, D].
    grouped = split_by_heads(query.reshape(batch, length, heads * dim), layout)
    grouped = grouped.reshape(batch, length, groups, heads // groups, dim).transpose(0, 2, 3, 1, 4)
    exact = query.dtype if keys.dtype == jnp.int8 else keys.dtype
    grouped, keys, values = placed(grouped.astype(exact)), keys.astype(exact), values.astype(exact)
    kept = {"precision": precision_of(exact), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("bgrtd,bgsd->bgrts", grouped, keys, **kept)
    if key_scale is not None:
        scores = scores * key_scale[:, :, None, None]
    scores = jnp.where(visible[:, None, None], squeeze(scores, softcap), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    if value_scale is not None:
        weights = weights * value_scale[:, :, None, None]
    mixed = jnp.einsum("bgrts,bgsd->bgrtd", weights.astype(values.dtype), values, **kept)
    return placed(mixed).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim).astype(query.dtype)


def split_by_heads(x: jax.Array, layout: Layout | None) -> jax.Array:
    """Queries or what attention made of them, `[B, T, N D]`: split by heads, unless attention is split by rows."""
    return x if layout is None else layout.constrain(x, None if layout.spare else HEADS)


def squeeze(x: jax.Array, cap: float) -> jax.Array:
    """`cap tanh(x / cap)`, between `-cap` and `cap`; x itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x

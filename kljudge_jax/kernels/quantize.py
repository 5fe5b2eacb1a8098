"""Weights in 8 and 4 bits: how they are rounded, stored and read again.

int8: one scale an output, the largest magnitude of a row over 127. int4: one bfloat16 scale for 32 values of a row, the
value of largest magnitude over -8, so that it is met exactly (the form of llama.cpp's Q4_0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

GROUP = 32  # values of an int4 weight that share a scale
_BLOCK = 64  # values whose halves lie in the two halves of 32 bytes


def can_be_int4(in_size: int) -> bool:
    """Whether a weight with rows of that length can be stored in 4 bits; others take 8."""
    return in_size % _BLOCK == 0


def to_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight float `[O, I]` as int8 `[O, I]` and scale f32 `[O]`."""
    weight = np.asarray(weight, np.float32)
    scale = np.abs(weight).max(axis=1) / 127
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(weight * inverse[:, None]).astype(np.int8), scale


def to_int4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight float `[O, I]` as uint8 `[O, I / 2]` and scale bfloat16 `[O, I / 32]`; I is a multiple of 64.

    Of each 64 values byte j holds value j in its lower half and value j + 32 in its upper one, each with 8 added.
    """
    outputs, size = weight.shape
    groups = np.asarray(weight, np.float32).reshape(outputs, size // GROUP, GROUP)
    at = np.abs(groups).argmax(axis=2)[..., None]
    scale = (np.take_along_axis(groups, at, axis=2)[..., 0] / -8).astype(ml_dtypes.bfloat16)
    wide = scale.astype(np.float32)
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
    values = (np.clip(np.rint(groups * inverse[..., None]), -8, 7) + 8).astype(np.uint8)
    pairs = values.reshape(outputs, size // _BLOCK, 2, GROUP)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(outputs, size // 2), scale


def from_int8(weight: jax.Array, scale: jax.Array, dtype) -> jax.Array:
    """What `to_int8` stored, in `dtype`."""
    return (weight.astype(jnp.float32) * scale[:, None]).astype(dtype)


def from_int4(weight: jax.Array, scale: jax.Array, dtype) -> jax.Array:
    """What `to_int4` stored, in `dtype`."""
    outputs, half = weight.shape
    pairs = weight.reshape(outputs, -1, 1, GROUP)
    values = jnp.concatenate([pairs & 15, pairs >> 4], axis=2).astype(jnp.float32) - 8
    groups = values.reshape(outputs, -1, GROUP) * scale.astype(jnp.float32)[..., None]
    return groups.reshape(outputs, 2 * half).astype(dtype)

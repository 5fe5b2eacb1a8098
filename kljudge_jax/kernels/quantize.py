"""Weights in 8 and 4 bits: how they are rounded, stored and read again.

int8: one scale an output, the largest magnitude of a row over 127. int4: one bfloat16 scale for 32 values of a row, the
value of largest magnitude over -8, so that it is met exactly (the form of llama.cpp's Q4_0).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

GROUP = 32  # values of an int4 weight that share a scale
_BLOCK = 64  # values whose halves lie in the two halves of 32 bytes


def can_be_int4(in_size: int) -> bool:
    """Whether a weight with rows of that length can be stored in 4 bits; others take 8."""
    return in_size % _BLOCK == 0


@functools.partial(jax.jit, static_argnums=1)
def round_to(weight: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """A weight `[O, I]` in 8 or 4 bits: see `to_int8` and `to_int4`."""
    return to_int8(weight) if bits == 8 else to_int4(weight)


def to_int8(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weight float `[O, I]` as int8 `[O, I]` and scale f32 `[O]`."""
    weight = jnp.asarray(weight, jnp.float32)
    scale = jnp.max(jnp.abs(weight), axis=1) / 127
    return jnp.round(weight / jnp.where(scale > 0, scale, 1)[:, None]).astype(jnp.int8), scale


def to_int4(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weight float `[O, I]` as uint8 `[O, I / 2]` and scale bfloat16 `[O, I / 32]`; I is a multiple of 64.

    Of each 64 values byte j holds value j in its lower half and value j + 32 in its upper one, each with 8 added.
    """
    outputs, size = weight.shape
    groups = jnp.asarray(weight, jnp.float32).reshape(outputs, size // GROUP, GROUP)
    least, most = jnp.min(groups, axis=2), jnp.max(groups, axis=2)
    scale = (jnp.where(-least > most, least, most) / -8).astype(jnp.bfloat16)
    wide = scale.astype(jnp.float32)[..., None]
    values = jnp.clip(jnp.round(groups / jnp.where(wide == 0, 1, wide)), -8, 7) + 8
    pairs = values.astype(jnp.uint8).reshape(outputs, size // _BLOCK, 2, GROUP)
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

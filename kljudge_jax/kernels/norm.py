"""Norms by the root mean square. On a CPU's one device they are native: XLA sums the squares of a lone row in another
order than those of several, and a row is to be the same to the bit whatever stands beside it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.kernels.place import Place
from kljudge_jax.varying import varying_as


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, place: Place) -> jax.Array:
    """`x / rms(x) * scale` over the last axis, worked out in float32.

    Args:
      x: `[..., H]`.
      scale: f32 `[H]`.
      eps: added to the mean of the squares.
      place: where both lie.

    Returns:
      `[..., H]`, of x's dtype.
    """
    if not place.native or x.size == 0:
        return _by_xla(x, scale, eps)
    return _native(eps, _rows(x), scale).reshape(x.shape).astype(x.dtype)


def sum_and_norm(
    x: jax.Array, more: jax.Array, scale: jax.Array, eps: float, place: Place
) -> tuple[jax.Array, jax.Array]:
    """`x + more`, and its `rms_norm`; both summands `[..., H]` of one dtype, as are the results."""
    if not place.native or x.size == 0 or x.dtype != jnp.float32:
        total = x + more
        return total, rms_norm(total, scale, eps, place)
    total, normed = _native_sum(eps, _rows(x), _rows(more), scale)
    return total.reshape(x.shape), normed.reshape(x.shape)


def _by_xla(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1]).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native(eps: float, x: jax.Array, scale: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    call = jax.ffi.ffi_call("kljudge_norm", result, vmap_method="sequential")
    return varying_as(call(x, scale, eps=np.float32(eps)), x)


def _native_forward(eps, x, scale):
    return _native(eps, x, scale), (x, scale)


def _native_backward(eps, saved, gradient):
    return jax.vjp(lambda x, scale: _by_xla(x, scale, eps), *saved)[1](gradient)


_native.defvjp(_native_forward, _native_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native_sum(eps: float, x: jax.Array, more: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32)] * 2
    call = jax.ffi.ffi_call("kljudge_sum_norm", results, vmap_method="sequential")
    total, normed = varying_as(call(x, more, scale, eps=np.float32(eps)), x)
    return total, normed


def _native_sum_forward(eps, x, more, scale):
    total, normed = _native_sum(eps, x, more, scale)
    return (total, normed), (total, scale)


def _native_sum_backward(eps, saved, gradients):
    of_total, of_normed = gradients
    through, of_scale = _native_backward(eps, saved, of_normed)
    return of_total + through, of_total + through, of_scale


_native_sum.defvjp(_native_sum_forward, _native_sum_backward)

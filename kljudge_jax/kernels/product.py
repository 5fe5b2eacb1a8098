"""One product of rows with a weight matrix: the only place that knows how it is best done on this backend.

| backend | weight | rows | form |
|---|---|---|---|
| CPU, one device | float32, bfloat16, int8 | up to `_MOST_ROWS` | native: the weight is read once, as it is stored |
| CPU, otherwise | bfloat16 | 1 | XLA, on two equal rows |
| any | any | any | XLA |
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kljudge_jax.kernels.cpu_library import library

# From here on a product is bound by arithmetic, and XLA's, which packs the weight first, is as fast or faster.
_MOST_ROWS = 192

_NATIVE = {jnp.dtype(jnp.float32): "kljudge_float32", jnp.dtype(jnp.bfloat16): "kljudge_bfloat16"}


def product(rows: jax.Array, weight: jax.Array, scale: jax.Array | None = None, local: bool = True) -> jax.Array:
    """`rows @ weight.T`, accumulated in float32.

    Args:
      rows: `[M, I]`, float32, bfloat16 or float16.
      weight: `[O, I]` in the dtype of `rows`, or int8.
      scale: f32 `[O]`, what a row of an int8 weight is a multiple of; None for the others.
      local: whether weight and rows lie on one device. XLA cannot split a native product over several.

    Returns:
      f32 `[M, O]`.
    """
    native = local and rows.shape[0] <= _MOST_ROWS and 0 not in rows.shape and jax.default_backend() == "cpu"
    if scale is not None:
        if native and library().ready:
            return _native_int8(rows, weight, scale)
        return _by_xla(rows, weight.astype(rows.dtype)) * scale
    if native and weight.dtype in _NATIVE and rows.dtype == weight.dtype and library().ready:
        return _native(rows, weight)
    return _by_xla(rows, weight)


def _by_xla(rows: jax.Array, weight: jax.Array) -> jax.Array:
    # XLA's CPU backend multiplies a single bfloat16 row by a scalar loop, 8 to 12 times slower than two rows.
    lonely = rows.shape[0] == 1 and rows.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    if lonely:
        rows = jnp.concatenate([rows, rows])
    out = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return out[:1] if lonely else out


def _call(target: str, rows: jax.Array, *operands: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct((rows.shape[0], operands[0].shape[0]), jnp.float32)
    return jax.ffi.ffi_call(target, result, vmap_method="sequential")(rows, *operands)


@jax.custom_vjp
def _native(rows: jax.Array, weight: jax.Array) -> jax.Array:
    return _call(_NATIVE[weight.dtype], rows, weight)


def _native_forward(rows, weight):
    return _native(rows, weight), (rows, weight)


def _native_backward(saved, gradient):
    _, pull = jax.vjp(_by_xla, *saved)
    return pull(gradient)


_native.defvjp(_native_forward, _native_backward)


@functools.partial(jax.jit, inline=True)
def _native_int8(rows: jax.Array, weight: jax.Array, scale: jax.Array) -> jax.Array:
    return _call("kljudge_int8", rows.astype(jnp.float32), weight, scale)

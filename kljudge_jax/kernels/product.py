"""One product of rows with a weight matrix: the only place that knows how it is best done on this backend.

| backend | weight | rows | form |
|---|---|---|---|
| CPU, one device | float32, bfloat16 | up to `_MOST_ROWS` | native: the weight is read once, as it is stored |
| CPU, otherwise | bfloat16 | 1 | XLA, on two equal rows |
| any | any | any | XLA |
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kljudge_jax.kernels.cpu_library import library

# From here on a product is bound by arithmetic, and XLA's, which packs the weight first, is as fast or faster.
_MOST_ROWS = 192

_NATIVE = {jnp.dtype(jnp.float32): "kljudge_float32", jnp.dtype(jnp.bfloat16): "kljudge_bfloat16"}


def product(rows: jax.Array, weight: jax.Array, local: bool = True) -> jax.Array:
    """`rows @ weight.T`, accumulated in float32.

    Args:
      rows: `[M, I]`, float32, bfloat16 or float16.
      weight: `[O, I]` in the dtype of `rows`.
      local: whether weight and rows lie on one device. XLA cannot split a native product over several.

    Returns:
      f32 `[M, O]`.
    """
    return products(rows, (weight,), local)[0]


def products(rows: jax.Array, weights: Sequence[jax.Array], local: bool = True) -> tuple[jax.Array, ...]:
    """`product` of the same rows with each of several weights, which takes less time than one after the other."""
    native = local and 0 < rows.shape[0] <= _MOST_ROWS and rows.shape[1] > 0 and jax.default_backend() == "cpu"
    native &= all(weight.dtype == rows.dtype in _NATIVE for weight in weights)
    if native and library().ready:
        return _native(rows, *weights)
    return tuple(_by_xla(rows, weight) for weight in weights)


def _by_xla(rows: jax.Array, weight: jax.Array) -> jax.Array:
    # XLA's CPU backend multiplies a single bfloat16 row by a scalar loop, 8 to 12 times slower than two rows.
    lonely = rows.shape[0] == 1 and rows.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    if lonely:
        rows = jnp.concatenate([rows, rows])
    out = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return out[:1] if lonely else out


@jax.custom_vjp
def _native(rows: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
    results = tuple(jax.ShapeDtypeStruct((rows.shape[0], weight.shape[0]), jnp.float32) for weight in weights)
    return tuple(jax.ffi.ffi_call(_NATIVE[rows.dtype], results, vmap_method="sequential")(rows, *weights))


def _native_forward(rows, *weights):
    return _native(rows, *weights), (rows, weights)


def _native_backward(saved, gradients):
    rows, weights = saved
    _, pull = jax.vjp(lambda rows, *weights: tuple(_by_xla(rows, weight) for weight in weights), rows, *weights)
    return pull(gradients)


_native.defvjp(_native_forward, _native_backward)

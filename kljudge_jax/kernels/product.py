"""Products of rows with weight matrices: the only place that knows how they are best done on this backend.

| backend | weight | rows | form |
|---|---|---|---|
| CPU, one device | float32, bfloat16 | up to `_MOST_ROWS` | native: the weight is read once, as it is stored |
| CPU, one device | int8, int4 | any | native, in integers: rows are rounded to int8 in groups of 64 |
| CPU, otherwise | bfloat16 | 1 | XLA, on two equal rows |
| any | float | any | XLA |
| any | int8, int4 | any | XLA, on the weight in the dtype of the rows |
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.quantize import from_int4, from_int8

# From here on a product is bound by arithmetic, and XLA's, which packs the weight first, is as fast or faster.
_MOST_ROWS = 192

# What part of float32's time bfloat16 may take at the most to be called faster.
_CLEARLY = 0.75

# What a weight is stored as: the array itself, or integers and their scale (see `quantize`).
Weight = jax.Array | tuple[jax.Array, jax.Array]

_NATIVE = {jnp.dtype(jnp.float32): "kljudge_float32", jnp.dtype(jnp.bfloat16): "kljudge_bfloat16"}


def product(rows: jax.Array, weight: Weight, local: bool = True) -> jax.Array:
    """`rows @ weight.T`, accumulated in float32.

    Args:
      rows: `[M, I]`, float32, bfloat16 or float16.
      weight: `[O, I]` in the dtype of `rows`; or what `to_int8` or `to_int4` made of it.
      local: whether weight and rows lie on one device. XLA cannot split a native product over several.

    Returns:
      f32 `[M, O]`.
    """
    return products(rows, [weight], local)[0]


def products(rows: jax.Array, weights: Sequence[Weight], local: bool = True) -> tuple[jax.Array, ...]:
    """`product` of the same rows with each of several weights, which takes less time than one after the other."""
    native = local and 0 not in rows.shape and jax.default_backend() == "cpu" and library().ready
    stored = {_stored(weight) for weight in weights}
    if native and stored <= {"int8"}:
        return _call("kljudge_int8", rows.astype(jnp.float32), weights)
    if native and stored <= {"int4"}:
        return _call("kljudge_int4", rows.astype(jnp.float32), weights)
    if native and stored == {rows.dtype} and rows.dtype in _NATIVE and rows.shape[0] <= _MOST_ROWS:
        return _native(rows, *weights)
    if native and len(stored) > 1:
        return tuple(product(rows, weight, local) for weight in weights)
    return tuple(_by_xla(rows, _in_dtype(weight, rows.dtype)) for weight in weights)


@functools.cache
def fastest_dtype() -> str:
    """ "bfloat16" or "float32": in which of them products of few rows are faster on this backend.

    Weights in 16 bits are half as many bytes, which decides wherever reading them bounds a product: on accelerators,
    and in the native products. XLA's products on a CPU are bound by other things, which differ between processors:
    there both are timed once, which takes about a second; but not on several hosts, which must agree. Only a clear
    difference counts, for the same command must find the same dtype again.
    """
    if jax.default_backend() != "cpu" or library().ready:
        return "bfloat16"
    if jax.process_count() > 1:
        return "float32"

    def seconds(dtype):
        rows, weight = jnp.ones((5, 1024), dtype), jnp.ones((4096, 1024), dtype)
        compiled = jax.jit(lambda rows, weight: product(rows, weight))
        compiled(rows, weight).block_until_ready()
        found = []
        for _ in range(5):
            start = time.perf_counter()
            compiled(rows, weight).block_until_ready()
            found.append(time.perf_counter() - start)
        return min(found)

    return "bfloat16" if seconds("bfloat16") < _CLEARLY * seconds("float32") else "float32"


def _stored(weight: Weight):
    if isinstance(weight, tuple):
        return "int8" if weight[0].dtype == jnp.int8 else "int4"
    return weight.dtype


def _in_dtype(weight: Weight, dtype) -> jax.Array:
    if not isinstance(weight, tuple):
        return weight
    return (from_int8 if weight[0].dtype == jnp.int8 else from_int4)(*weight, dtype)


def _by_xla(rows: jax.Array, weight: jax.Array) -> jax.Array:
    # XLA's CPU backend multiplies a single bfloat16 row by a scalar loop, 8 to 12 times slower than two rows.
    lonely = rows.shape[0] == 1 and rows.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    if lonely:
        rows = jnp.concatenate([rows, rows])
    out = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return out[:1] if lonely else out


def _call(target: str, rows: jax.Array, weights: Sequence[Weight]) -> tuple[jax.Array, ...]:
    operands = jax.tree.leaves(list(weights))
    outputs = [jax.tree.leaves(weight)[0].shape[0] for weight in weights]
    results = tuple(jax.ShapeDtypeStruct((rows.shape[0], count), jnp.float32) for count in outputs)
    return tuple(jax.ffi.ffi_call(target, results, vmap_method="sequential")(rows, *operands))


@jax.custom_vjp
def _native(rows: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
    return _call(_NATIVE[rows.dtype], rows, weights)


def _native_forward(rows, *weights):
    return _native(rows, *weights), (rows, weights)


def _native_backward(saved, gradients):
    rows, weights = saved
    _, pull = jax.vjp(lambda rows, *weights: tuple(_by_xla(rows, weight) for weight in weights), rows, *weights)
    return pull(gradients)


_native.defvjp(_native_forward, _native_backward)

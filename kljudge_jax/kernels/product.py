"""Products of rows with weight matrices: the only place that knows how they are best done where they lie.

| backend | weight | rows | scheme |
|---|---|---|---|
| CPU, one device | float32, bfloat16 | up to `_MOST_ROWS` | native: the weight is read once, as it is stored |
| CPU, one device | quantized, tiled | any | native, in integers: rows are rounded to int8 in groups of 64 |
| CPU, otherwise | bfloat16 | 1 | XLA, on two equal rows |
| TPU | any | 1 | XLA, on two equal rows |
| any | float | any | XLA |
| any | quantized | any | XLA, on the weight in the dtype of the rows |
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.place import Place, default_platform, here
from kljudge_jax.kernels.quantize import QuantizedTensor, dequantize, to_tiles
from kljudge_jax.varying import varying_as

# From here on a product is bound by arithmetic, and XLA's, which packs the weight first, is as fast or faster.
_MOST_ROWS = 192

# What part of float32's time bfloat16 may take at most to be called faster.
_CLEARLY = 0.75

Weight = jax.Array | QuantizedTensor

_NATIVE = {jnp.dtype(jnp.float32): "kljudge_float32", jnp.dtype(jnp.bfloat16): "kljudge_bfloat16"}


def product(rows: jax.Array, weight: Weight, place: Place | None = None) -> jax.Array:
    """`rows @ weight.T`, accumulated in float32.

    Args:
      rows: `[M, I]`, float32, bfloat16 or float16.
      weight: `[O, I]` in the dtype of `rows`; or such a matrix, quantized.
      place: where weight and rows lie; None is one device of the default platform.

    Returns:
      f32 `[M, O]`.
    """
    return products(rows, [weight], place)[0]


def products(rows: jax.Array, weights: Sequence[Weight], place: Place | None = None) -> tuple[jax.Array, ...]:
    """`product` of the same rows with each of several weights, which takes less time than one after the other."""
    place = here() if place is None else place
    native = 0 not in rows.shape and place.native
    stored = {_stored(weight) for weight in weights}
    quantized = [weight for weight in weights if isinstance(weight, QuantizedTensor)]
    if native and stored == {"tiles"}:
        return _call("kljudge_blocks", rows.astype(jnp.float32), quantized, **schemes_attribute(quantized))
    if native and stored == {rows.dtype} and rows.dtype in _NATIVE and rows.shape[0] <= _MOST_ROWS:
        return _native(rows, *weights)
    if native and len(stored) > 1:
        return tuple(product(rows, weight, place) for weight in weights)
    return tuple(
        _by_xla(rows, dequantize(weight, rows.dtype) if isinstance(weight, QuantizedTensor) else weight, place)
        for weight in weights
    )


def tiled_where_native(weight: QuantizedTensor, place: Place | None = None) -> QuantizedTensor:
    """A weight in rows, as products want it: in the tiled layout where they are native."""
    return to_tiles(weight) if (here() if place is None else place).native else weight


@functools.cache
def fastest_dtype() -> str:
    """ "bfloat16" or "float32": in which of them products of few rows are faster on this backend.

    Weights in 16 bits are half as many bytes, which decides wherever reading them bounds a product: on accelerators,
    and in the native products. XLA's products on a CPU are bound by other things, which differ between processors:
    there both are timed once, which takes about a second; but not on several hosts, which must agree. Only a clear
    difference counts, for the same command must find the same dtype again.
    """
    if default_platform() != "cpu" or library().ready:
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
    if isinstance(weight, QuantizedTensor):
        return "tiles" if weight.tiled else "rows"
    return weight.dtype


def _by_xla(rows: jax.Array, weight: jax.Array, place: Place) -> jax.Array:
    # XLA's CPU backend multiplies a single bfloat16 row by a scalar loop, 8 to 12 times slower than two rows. On a TPU
    # it multiplies and reduces one row on the vector unit: two reach the matrix unit.
    slow_alone = place.platform == "tpu" or (place.platform == "cpu" and rows.dtype == jnp.bfloat16)
    duplicated = rows.shape[0] == 1 and slow_alone
    if duplicated:
        rows = jnp.concatenate([rows, rows])
    out = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return out[:1] if duplicated else out


def _call(target: str, rows: jax.Array, weights: Sequence[Weight], **options) -> tuple[jax.Array, ...]:
    results = tuple(jax.ShapeDtypeStruct((rows.shape[0], weight.shape[0]), jnp.float32) for weight in weights)
    operands = jax.tree.leaves(list(weights))
    found = jax.ffi.ffi_call(target, results, vmap_method="sequential")(rows, *operands, **options)
    return tuple(varying_as(found, rows))


def schemes_attribute(weights: Sequence[QuantizedTensor]) -> dict[str, np.ndarray]:
    """How the native products are told what their weights are."""
    schemes = [weight.scheme for weight in weights]
    numbers = [scheme.bits + 16 * scheme.minimum for scheme in schemes]
    return {"schemes": np.asarray(numbers, np.int64)}


@jax.custom_vjp
def _native(rows: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
    return _call(_NATIVE[rows.dtype], rows, weights)


def _native_forward(rows, *weights):
    return _native(rows, *weights), (rows, weights)


def _native_backward(saved, gradients):
    rows, weights = saved
    place = Place("cpu")
    _, pull = jax.vjp(lambda rows, *weights: tuple(_by_xla(rows, weight, place) for weight in weights), rows, *weights)
    return pull(gradients)


_native.defvjp(_native_forward, _native_backward)

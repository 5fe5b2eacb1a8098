"""Products of rows with weight matrices: the only place that knows how they are best done where they lie.

| backend | weight | rows | scheme |
|---|---|---|---|
| CPU, one device | float32, bfloat16 | few (`_is_few`) | native: the weight is read once, as it is stored |
| CPU, one device | quantized, tiled | any | native, in integers: rows are rounded to int8 in groups of 64 |
| CPU, otherwise | bfloat16 | 1 | XLA, on two equal rows |
| TPU | any | 1 | XLA, on two equal rows |
| any | float | any | XLA |
| any | quantized, blocks | any | XLA, on the weight in the dtype of the rows |
| any | int8, a scale an output | any | XLA, on the integers; scales multiply the product |
| GPU | int4 in groups | up to `_MOST_PARTIAL_ROWS` | XLA, a product a group; scales multiply each |
| any | int4 in groups | any | XLA, over groups and their columns at once; a TPU dequantizes within the product |
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.place import Place, default_platform, here
from kljudge_jax.kernels.quantize import QuantizedTensor, dequantize, in_groups, to_tiles, transposed
from kljudge_jax.varying import varying_as

# From here on a product is bound by arithmetic, and XLA's, which packs the weight first, is as fast or faster.
_MOST_ROWS = 192

# Tokens of a sequence in a pass of decoding, prompts included, which is native however many sequences there are: their
# number must not decide whether the target reads a draft as it would read one token.
_MOST_TOKENS = 64

# Each group's product is written and read again, `8 * rows / group` bytes a weight: from here on dequantized weights,
# 4 bytes each in bfloat16, are fewer, in groups of 512.
_MOST_PARTIAL_ROWS = 256

# What part of float32's time bfloat16 may take at most to be called faster.
_CLEARLY = 0.75

Weight = jax.Array | QuantizedTensor

_NATIVE = {jnp.dtype(jnp.float32): "kljudge_float32", jnp.dtype(jnp.bfloat16): "kljudge_bfloat16"}


def product(rows: jax.Array, weight: Weight, place: Place | None = None) -> jax.Array:
    """`rows @ weight.T`, accumulated in float32.

    Args:
      rows: `[..., T, I]`, float32, bfloat16 or float16; T says how many belong to one sequence.
      weight: `[O, I]`, to whose dtype rows are rounded; or such a matrix, quantized.
      place: where weight and rows lie; None is one device of the default platform.

    Returns:
      f32 `[..., T, O]`.
    """
    return products(rows, [weight], place)[0]


def products(rows: jax.Array, weights: Sequence[Weight], place: Place | None = None) -> tuple[jax.Array, ...]:
    """`product` of the same rows with each of several weights, which takes less time than one after the other."""
    place = here() if place is None else place
    found = _products(rows.reshape(-1, rows.shape[-1]), weights, place, _is_few(rows.shape))
    return tuple(out.reshape(*rows.shape[:-1], out.shape[-1]) for out in found)


def _is_few(shape: tuple[int, ...]) -> bool:
    """Whether rows `[..., T, I]` are few enough for native products of floats."""
    return math.prod(shape[:-1]) <= _MOST_ROWS or (len(shape) > 2 and shape[-2] <= _MOST_TOKENS)


def _products(rows: jax.Array, weights: Sequence[Weight], place: Place, few: bool) -> tuple[jax.Array, ...]:
    """Of rows `[M, I]`, which are `few` enough to be native or not."""
    native = 0 not in rows.shape and place.native
    stored = {_stored(weight) for weight in weights}
    quantized = [weight for weight in weights if isinstance(weight, QuantizedTensor)]
    if native and stored == {"tiles"}:
        return _call("kljudge_blocks", rows.astype(jnp.float32), quantized, **schemes_attribute(quantized))
    if len(stored) > 1:
        return tuple(_products(rows, [weight], place, few)[0] for weight in weights)
    if not isinstance(weights[0], QuantizedTensor):
        rows = rows.astype(weights[0].dtype)
    if native and few and stored == {rows.dtype} and rows.dtype in _NATIVE:
        return _native(rows, *weights)
    return tuple(_by_xla(rows, weight, place) for weight in weights)


def precision_of(dtype: Any) -> jax.lax.Precision | None:
    """Of a product of such numbers: float32 is promised in all its bits, where accelerators would round it to fewer."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def tiled_where_native(weight: QuantizedTensor, place: Place | None = None) -> QuantizedTensor:
    """A weight as `quantize` makes it, as products want it: rows in the tiled layout where they are native."""
    native = weight.scheme.group is None and (here() if place is None else place).native
    return to_tiles(weight) if native else weight


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


def _by_xla(rows: jax.Array, weight: Weight, place: Place) -> jax.Array:
    # XLA's CPU backend multiplies a single bfloat16 row by a scalar loop, 8 to 12 times slower than two rows. On a TPU
    # it multiplies and reduces one row on the vector unit: two reach the matrix unit.
    tpu = place.platform == "tpu"
    slow_alone = tpu or (place.platform == "cpu" and rows.dtype == jnp.bfloat16)
    if rows.shape[0] != 1 or not slow_alone:
        return _multiplied(rows, weight, place)
    rows = jnp.concatenate([rows, rows])
    # Fused into the product, the doubling costs a quarter of its time.
    return _multiplied(jax.lax.optimization_barrier(rows) if tpu else rows, weight, place)[:1]


def _multiplied(rows: jax.Array, weight: Weight, place: Place) -> jax.Array:
    if not isinstance(weight, QuantizedTensor):
        return _dot(rows, weight)
    group = weight.scheme.group
    if group is None:
        return _dot(rows, dequantize(weight, rows.dtype))
    values = weight.values
    if place.platform == "gpu" or (place.platform == "tpu" and group > 0):
        # XLA would merge the products of the same rows into one, and write its weight in the dtype of the rows.
        rows, values = jax.lax.optimization_barrier((rows, values))
        weight = dataclasses.replace(weight, values=values)
    if group == 0:
        return _dot(rows, values.astype(rows.dtype)) * weight.scale[None]
    grouped, precision = rows.reshape(rows.shape[0], -1, group), precision_of(rows.dtype)
    order = weight.scheme.order
    if place.platform == "gpu" and len(rows) <= _MOST_PARTIAL_ROWS and weight.minimum is None:
        values = values.astype(rows.dtype)
        partial = jnp.einsum(
            f"mgk,{order}->gmo", grouped, values, precision=precision, preferred_element_type=jnp.float32
        )
        return jnp.sum(partial * transposed(weight.scale, order, "gko").astype(jnp.float32), axis=0)
    wide = in_groups(weight, rows.dtype)
    return jnp.einsum(f"mgk,{order}->mo", grouped, wide, precision=precision, preferred_element_type=jnp.float32)


def _dot(rows: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        rows,
        weight,
        (((1,), (1,)), ((), ())),
        precision=precision_of(rows.dtype),
        preferred_element_type=jnp.float32,
    )


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

"""The matrices of a model: what multiplies hidden states, and the table of token embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from kljudge_jax.kernels.place import Place, default_platform
from kljudge_jax.kernels.product import product, products, tiled_where_native
from kljudge_jax.kernels.quantize import (
    QuantizedTensor,
    Scheme,
    kept_on,
    order_on,
    quantize,
    rows_of,
    scheme_for,
)
from kljudge_jax.parallel.layout import Layout

FILE = "file"
"""`Storage.bits` of matrices that stay quantized as the file that they come from has them, or as near as the platform's
products can read them (`quantize.kept_on`)."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a model's matrices are kept.

    Attributes:
      dtype: of hidden states, and of every matrix that has no bits of its own.
      bits: 8 or 4, for quantized matrices (`kernels.quantize`); None for none. Embedding and head take 8
        at least, since what they lose goes straight to the logits. "file" leaves those as they are that a file has
        quantized.
      layout: where they lie on a mesh, and what is worked out from them there; None is one device.
      schemes: of "file", how those are stored, by dotted name; without it 8 bits are taken for planning.
      cache_bits: 8, for a quantized KV cache (`int8_cache`); None keeps keys and values in `dtype`.
      platform: of the devices, "cpu", "gpu" or "tpu"; None is the layout's, or that of the device JAX puts arrays on.
      head_rows: how many tokens the head has rows of, in a `RankedHead`; None is all.
    """

    dtype: Any = jnp.float32
    bits: int | str | None = None
    layout: Layout | None = None
    schemes: tuple[tuple[str, Scheme], ...] = ()
    cache_bits: int | None = None
    platform: str | None = None
    head_rows: int | None = None

    @property
    def place(self) -> Place:
        """Where they lie."""
        ours = None if self.layout is None else self.layout.platform
        return Place(self.platform or ours or default_platform(), self.layout is None)

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    def __str__(self) -> str:
        """What reports call it, wherever it lies: "bfloat16", "int8 (bfloat16)", or "the file's bits (bfloat16)"."""
        cached = "" if self.cache_bits is None else f", int{self.cache_bits} cache"
        if self.bits is None:
            return f"{self.dtype}{cached}"
        return f"{'the file' + chr(39) + 's bits' if self.bits == FILE else f'int{self.bits}'} ({self.dtype}){cached}"

    def scheme(self, name: str, in_size: int) -> Scheme | None:
        """How the matrix of that dotted name is stored, whose rows have that length; None for one in `dtype`."""
        platform = self.place.platform
        if self.bits == FILE and self.schemes:
            theirs = dict(self.schemes).get(name)
            return None if theirs is None else kept_on(theirs, platform, gathered=name.startswith("embedding."))
        if self.bits is None:
            return None
        # What a file has before it is opened is not known, but hardly ever more than 8 bits.
        ways = 1 if self.layout is None else self.layout.input_ways(name)
        return scheme_for(4 if self.bits == 4 and name.startswith(("layers.", "fc.")) else 8, in_size, platform, ways)

    def sharding(self, name: str, shape: Sequence[int]) -> NamedSharding | None:
        """How the parameter of that dotted name and stored shape lies on the layout's mesh; None without a layout."""
        order = order_on(self.place.platform)
        return None if self.layout is None else self.layout.parameter(name, shape, order)


def is_matrix(name: str) -> bool:
    """Whether the parameter of that dotted name is one that `Storage.bits` is about."""
    return name.endswith((".weight", ".table"))


def quantized_parts(name: str, weight: QuantizedTensor) -> dict[str, jax.Array]:
    """The parameters that a quantized matrix of that dotted name is made of, by their own."""
    module = name.rpartition(".")[0]
    parts = {name: weight.values, f"{module}.scale": weight.scale, f"{module}.minimum": weight.minimum}
    return {part: value for part, value in parts.items() if value is not None}


class Linear(nnx.Module):
    """`x @ weight.T + bias`, weight `[O, I]` as checkpoints store it, bias `[O]`; products accumulate in float32.

    Attributes:
      scale, minimum: of a quantized weight, else None; the second may be None.
      shape: `(O, I)`.
      scheme: how it is quantized, else None.
      place: where the weight lies.
    """

    def __init__(
        self,
        key: jax.Array,
        in_size: int,
        out_size: int,
        bias: bool = False,
        storage: Storage = Storage(),
        scheme: Scheme | None = None,
    ):
        self.shape = (out_size, in_size)
        self.scheme = scheme
        self.place = storage.place
        weight = in_size**-0.5 * jax.random.normal(key, self.shape)
        self.weight, self.scale, self.minimum = _stored(weight, storage, scheme)
        self.bias = nnx.Param(jnp.zeros((out_size,), storage.dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., I]` to `[..., O]` in x's dtype."""
        return self.in_float32(x).astype(x.dtype)

    def in_float32(self, x: jax.Array) -> jax.Array:
        """The same, before it is rounded to x's dtype: what logits are made of."""
        return side_by_side(x, self)[0]


def side_by_side(x: jax.Array, *layers: Linear) -> list[jax.Array]:
    """What each of several layers makes of the same x, as one piece of work: f32, not yet rounded to x's dtype."""
    found = products(x, [matrix_of(layer) for layer in layers], layers[0].place)
    return [
        out if layer.bias is None else out + jnp.expand_dims(layer.bias[...].astype(jnp.float32), range(out.ndim - 1))
        for layer, out in zip(layers, found, strict=True)
    ]


class Embedding(nnx.Module):
    """Token embeddings `[V, H]`, and the head of a model that ties the two; attributes as in `Linear`."""

    def __init__(
        self,
        key: jax.Array,
        vocab_size: int,
        hidden_size: int,
        storage: Storage = Storage(),
        scheme: Scheme | None = None,
    ):
        self.shape = (vocab_size, hidden_size)
        self.scheme = scheme
        self.dtype = storage.dtype
        self.place = storage.place
        table = hidden_size**-0.5 * jax.random.normal(key, self.shape)
        self.table, self.scale, self.minimum = _stored(table, storage, scheme)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens int32 `[...]` to `[..., H]`."""
        table = matrix_of(self)
        if self.table.dtype != jnp.float32 and self.place.platform == "cpu":
            # XLA's CPU backend gathers 16-bit rows as float32 ones. It does so row by row, unless it can see that the
            # table is the same in every turn of a loop: then it makes a float32 copy of the whole table beforehand.
            table, tokens = jax.lax.optimization_barrier((table, tokens))
        if isinstance(table, QuantizedTensor):
            if tokens.size == 1 and self.place.platform == "tpu":
                # Of one row XLA makes a slice, and lays the whole table out anew for it; of two it makes a gather.
                pair = jnp.concatenate([tokens.reshape(1), tokens.reshape(1)])
                return rows_of(table, pair, self.dtype)[:1].reshape(*tokens.shape, -1)
            return rows_of(table, tokens, self.dtype)
        return jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """x `[..., H]` to logits f32 `[..., V]`."""
        return product(x, matrix_of(self), self.place)


def _stored(
    weight: jax.Array, storage: Storage, scheme: Scheme | None
) -> tuple[nnx.Param, nnx.Param | None, nnx.Param | None]:
    if scheme is None:
        return nnx.Param(weight.astype(storage.dtype)), None, None
    rounded = tiled_where_native(quantize(weight, scheme), storage.place)
    least = None if rounded.minimum is None else nnx.Param(rounded.minimum)
    return nnx.Param(rounded.values), nnx.Param(rounded.scale), least


def matrix_of(layer: Linear | Embedding) -> jax.Array | QuantizedTensor:
    """Its matrix, as products take it."""
    values = layer.weight if isinstance(layer, Linear) else layer.table
    if layer.scheme is None:
        return values[...]
    assert layer.scale is not None
    least = None if layer.minimum is None else layer.minimum[...]
    return QuantizedTensor(values[...], layer.scale[...], least, layer.shape, layer.scheme)

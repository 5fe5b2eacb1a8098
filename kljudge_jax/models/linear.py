"""The matrices of a model: what multiplies hidden states, and the table of token embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kljudge_jax.kernels.product import product, products
from kljudge_jax.kernels.quantize import can_be_int4, round_to
from kljudge_jax.parallel.layout import Layout


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a model's matrices are kept.

    Attributes:
      dtype: of hidden states, and of every matrix that has no bits of its own.
      bits: 8 or 4, for matrices of integers with scales (`kernels.quantize`); None for none. Embedding and head take 8
        at least, since what they lose goes straight to the logits.
      layout: where they lie on a mesh, and what is worked out from them there; None is one device.
    """

    dtype: Any = jnp.float32
    bits: int | None = None
    layout: Layout | None = None

    @property
    def local(self) -> bool:
        """Whether they all lie on one device, which then multiplies by means of its own."""
        return self.layout is None

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    def __str__(self) -> str:
        """What reports call it, wherever it lies: "bfloat16", or "int8 (bfloat16)"."""
        return str(self.dtype) if self.bits is None else f"int{self.bits} ({self.dtype})"

    def bits_of(self, name: str, in_size: int) -> int | None:
        """The bits of the matrix of that dotted name, whose rows have that length; None for a matrix in `dtype`."""
        inside = name.startswith("layers.")
        return 8 if self.bits == 4 and not (inside and can_be_int4(in_size)) else self.bits


def is_matrix(name: str) -> bool:
    """Whether the parameter of that dotted name is one that `Storage.bits` is about."""
    return name.endswith((".weight", ".table"))


def scale_name(name: str) -> str:
    """The dotted name of the scale that stands beside a matrix of integers."""
    return name.rpartition(".")[0] + ".scale"


class Linear(nnx.Module):
    """`x @ weight.T + bias`, weight `[O, I]` as checkpoints store it, bias `[O]`; products accumulate in float32.

    Attributes:
      scale: of a weight of integers, else None.
      local: whether the weight lies on one device.
    """

    def __init__(
        self,
        key: jax.Array,
        in_size: int,
        out_size: int,
        bias: bool = False,
        storage: Storage = Storage(),
        bits: int | None = None,
    ):
        weight = in_size**-0.5 * jax.random.normal(key, (out_size, in_size))
        self.weight, self.scale = _stored(weight, storage, bits)
        self.bias = nnx.Param(jnp.zeros((out_size,), storage.dtype)) if bias else None
        self.local = storage.local

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., I]` to `[..., O]` in x's dtype."""
        return self.in_float32(x).astype(x.dtype)

    def in_float32(self, x: jax.Array) -> jax.Array:
        """The same, before it is rounded to x's dtype: what logits are made of."""
        return side_by_side(x, self)[0]


def side_by_side(x: jax.Array, *layers: Linear) -> list[jax.Array]:
    """What each of several layers makes of the same x, as one piece of work: f32, not yet rounded to x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    found = products(rows, [_weight(layer.weight, layer.scale) for layer in layers], layers[0].local)
    biased = [
        out if layer.bias is None else out + layer.bias[...].astype(jnp.float32)
        for layer, out in zip(layers, found, strict=True)
    ]
    return [out.reshape(*x.shape[:-1], out.shape[-1]) for out in biased]


class Embedding(nnx.Module):
    """Token embeddings `[V, H]`, and the head of a model that ties the two; `scale` and `local` as in `Linear`."""

    def __init__(
        self,
        key: jax.Array,
        vocab_size: int,
        hidden_size: int,
        storage: Storage = Storage(),
        bits: int | None = None,
    ):
        table = hidden_size**-0.5 * jax.random.normal(key, (vocab_size, hidden_size))
        self.table, self.scale = _stored(table, storage, bits)
        self.dtype = storage.dtype
        self.local = storage.local

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens int32 `[...]` to `[..., H]`."""
        table = self.table[...]
        if table.dtype != jnp.float32 and jax.default_backend() == "cpu":
            # XLA's CPU backend gathers 16-bit rows as float32 ones. It does so row by row, unless it can see that the
            # table is the same in every turn of a loop: then it makes a float32 copy of the whole table beforehand.
            table, tokens = jax.lax.optimization_barrier((table, tokens))
        rows = jnp.take(table, tokens, axis=0, mode="clip")
        if self.scale is not None:
            rows = rows.astype(jnp.float32) * jnp.take(self.scale[...], tokens, mode="clip")[..., None]
        return rows.astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """x `[..., H]` to logits f32 `[..., V]`."""
        rows = x.reshape(-1, x.shape[-1])
        return product(rows, _weight(self.table, self.scale), self.local).reshape(*x.shape[:-1], self.table.shape[0])


def _stored(weight: jax.Array, storage: Storage, bits: int | None) -> tuple[nnx.Param, nnx.Param | None]:
    if bits is None:
        return nnx.Param(weight.astype(storage.dtype)), None
    return tuple(map(nnx.Param, round_to(weight, bits)))


def _weight(weight: nnx.Param, scale: nnx.Param | None):
    return weight[...] if scale is None else (weight[...], scale[...])

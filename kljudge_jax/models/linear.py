"""The matrices of a model: what multiplies hidden states, and the table of token embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from kljudge_jax.kernels.product import product, products


class Linear(nnx.Module):
    """`x @ weight.T + bias`, weight `[O, I]` as checkpoints store it, bias `[O]`; products accumulate in float32.

    Attributes:
      local: whether the weight lies on one device.
    """

    def __init__(self, key: jax.Array, in_size: int, out_size: int, bias: bool = False, dtype=jnp.float32, local=True):
        deviation = in_size**-0.5
        self.weight = nnx.Param((deviation * jax.random.normal(key, (out_size, in_size))).astype(dtype))
        self.bias = nnx.Param(jnp.zeros((out_size,), dtype)) if bias else None
        self.local = local

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., I]` to `[..., O]` in x's dtype."""
        return self.in_float32(x).astype(x.dtype)

    def in_float32(self, x: jax.Array) -> jax.Array:
        """The same, before it is rounded to x's dtype: what logits are made of."""
        return side_by_side(x, self)[0]


def side_by_side(x: jax.Array, *layers: Linear) -> list[jax.Array]:
    """What each of several layers makes of the same x, as one piece of work: f32, not yet rounded to x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    found = products(rows, [layer.weight[...] for layer in layers], all(layer.local for layer in layers))
    found = [
        out if layer.bias is None else out + layer.bias[...].astype(jnp.float32)
        for layer, out in zip(layers, found, strict=True)
    ]
    return [out.reshape(*x.shape[:-1], out.shape[-1]) for out in found]


class Embedding(nnx.Module):
    """Token embeddings `[V, H]`, and the head of a model that ties the two; `local` as in `Linear`."""

    def __init__(self, key: jax.Array, vocab_size: int, hidden_size: int, dtype=jnp.float32, local=True):
        self.table = nnx.Param((hidden_size**-0.5 * jax.random.normal(key, (vocab_size, hidden_size))).astype(dtype))
        self.local = local

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens int32 `[...]` to `[..., H]`."""
        table = self.table[...]
        if table.dtype != jnp.float32 and jax.default_backend() == "cpu":
            # XLA's CPU backend gathers 16-bit rows as float32 ones. It does so row by row, unless it can see that the
            # table is the same in every turn of a loop: then it makes a float32 copy of the whole table beforehand.
            table, tokens = jax.lax.optimization_barrier((table, tokens))
        return jnp.take(table, tokens, axis=0, mode="clip")

    def attend(self, x: jax.Array) -> jax.Array:
        """x `[..., H]` to logits f32 `[..., V]`."""
        table = self.table[...]
        return product(x.reshape(-1, x.shape[-1]), table, self.local).reshape(*x.shape[:-1], table.shape[0])

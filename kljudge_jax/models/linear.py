"""One product with a weight matrix: the only place that knows how it is best done on this backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


def _dot(rows: jax.Array, weight: jax.Array, weight_axis: int) -> jax.Array:
    """`rows` `[M, I]` by `weight`, contracted over its axis `weight_axis`, accumulated in float32: f32 `[M, O]`."""
    # XLA's CPU backend multiplies a single bfloat16 row by a scalar loop, 8 to 12 times slower than two rows.
    lonely = rows.shape[0] == 1 and rows.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    if lonely:
        rows = jnp.concatenate([rows, rows])
    out = jax.lax.dot_general(rows, weight, (((1,), (weight_axis,)), ((), ())), preferred_element_type=jnp.float32)
    return out[:1] if lonely else out


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel `[I, O]`, bias `[O]`; products are accumulated in float32."""

    def __init__(self, key: jax.Array, in_size: int, out_size: int, bias: bool = False, dtype=jnp.float32):
        scale = in_size**-0.5
        self.kernel = nnx.Param((scale * jax.random.normal(key, (in_size, out_size))).astype(dtype))
        self.bias = nnx.Param(jnp.zeros((out_size,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., I]` to `[..., O]` in x's dtype."""
        return self.in_float32(x).astype(x.dtype)

    def in_float32(self, x: jax.Array) -> jax.Array:
        """The same, before it is rounded to x's dtype: what logits are made of."""
        kernel = self.kernel[...]
        out = _dot(x.reshape(-1, x.shape[-1]), kernel, 0)
        if self.bias is not None:
            out = out + self.bias[...].astype(jnp.float32)
        return out.reshape(*x.shape[:-1], kernel.shape[1])


class Embedding(nnx.Module):
    """Token embeddings `[V, H]`, and the head of a model that ties the two."""

    def __init__(self, key: jax.Array, vocab_size: int, hidden_size: int, dtype=jnp.float32):
        self.table = nnx.Param((hidden_size**-0.5 * jax.random.normal(key, (vocab_size, hidden_size))).astype(dtype))

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
        return _dot(x.reshape(-1, x.shape[-1]), table, 1).reshape(*x.shape[:-1], table.shape[0])

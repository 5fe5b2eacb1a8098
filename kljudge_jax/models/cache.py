"""The key/value cache: a pytree indexed by position, so that rolling back is a smaller length and nothing else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.parallel.layout import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer; B rows, capacity S, G kv heads, D head dimension.

    Slot s of row b holds position s of that row's sequence. Slots from `length[b]` on are stale: no query can see
    them, because a query at position p sees slots up to p and its own are written first.

    Attributes:
      keys, values: one array `[B, G, S, D]` a layer. Heads come before positions so that both products of attention
        are batched over leading axes, which no backend has to transpose.
      length: int32 `[B]`, how many tokens each row has consumed.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def create(cls, config: TransformerConfig, batch: int, capacity: int, dtype=jnp.float32) -> KVCache:
        """An empty cache for a model of that dtype."""
        # XLA's CPU backend has no 16-bit stores: it would widen and narrow a whole buffer around every write.
        dtype = jnp.float32 if jax.default_backend() == "cpu" else dtype
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        # One buffer each: donated arrays must not share memory.
        keys = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
        values = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
        return cls(keys, values, jnp.zeros((batch,), jnp.int32))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def placed(self, layout: Layout) -> KVCache:
        """The same cache, laid out as the model of that layout works on it."""
        keys, values = (tuple(map(layout.attention, stored)) for stored in (self.keys, self.values))
        return KVCache(keys, values, layout.rows(self.length))

    def at_length(self, length: jax.Array) -> KVCache:
        """The same cache with `length` tokens consumed, int32 `[B]`: a rollback when it is smaller."""
        return dataclasses.replace(self, length=jnp.asarray(length, jnp.int32))


def read_rows(stored: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """A copy of slots `start[b]` to `start[b] + count` of `stored` `[B, G, S, D]`, `start` int32 `[B]`."""

    def of_row(rows, at):
        return jax.lax.dynamic_slice_in_dim(rows, at, count, axis=1)

    return jax.vmap(of_row)(stored, start)


def write_rows(stored: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes `new` `[B, G, T, D]` into `stored` `[B, G, S, D]` at slots `start[b]` to `start[b] + T`.

    Only the new rows move: the rest of the buffer is updated in place when the caller donated it. The caller keeps
    `start + T <= S`: past the end the write would be shifted over good rows without a word.
    """
    new = new.astype(stored.dtype)
    if stored.shape[0] == 1:
        return jax.lax.dynamic_update_slice(stored, new, (0, 0, start[0], 0))
    return jax.vmap(lambda rows, row, at: jax.lax.dynamic_update_slice(rows, row, (0, at, 0)))(stored, new, start)

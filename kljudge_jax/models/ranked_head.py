"""A head over a part of the vocabulary, the tokens that a draft is most likely to need: few rows to read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from kljudge_jax.models.linear import Linear, Storage
from kljudge_jax.varying import varying_as


class TokenIds(nnx.Variable):
    """Which tokens the rows of a head are of: int32, no parameter that is trained."""


class RankedHead(nnx.Module):
    """Some rows of a head; the tokens of the others have logits of -inf.

    On a mesh every device holds all of its rows.

    Attributes:
      rows: those rows, `[R, H]`.
      ids: int32 `[R]`, their tokens, in rising order.
      vocab_size: V.
    """

    def __init__(self, key: jax.Array, hidden_size: int, vocab_size: int, storage: Storage, name: str):
        """Random ones, of as many tokens as `storage.head_rows`, kept as the matrix `name` of the whole head is."""
        assert storage.head_rows is not None
        scheme = storage.scheme(name, hidden_size)
        self.rows = Linear(key, hidden_size, storage.head_rows, False, storage, scheme)
        self.ids = TokenIds(jnp.arange(storage.head_rows, dtype=jnp.int32))
        self.vocab_size = vocab_size

    def in_float32(self, x: jax.Array) -> jax.Array:
        """Final-norm states `[..., H]` to logits f32 `[..., R]` of the tokens that it knows."""
        return self.rows.in_float32(x)

    def over_vocabulary(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., R]` as those of all tokens `[..., V]`."""
        nothing = jnp.full((*logits.shape[:-1], self.vocab_size), -jnp.inf, logits.dtype)
        at = varying_as(nothing, logits).at[..., self.ids[...]]
        return at.set(logits, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")


def ranked_name(tied: bool) -> str:
    """The dotted name of the matrix whose rows a head has, where it is the embedding and where it is its own."""
    return "embedding.table" if tied else "head.weight"

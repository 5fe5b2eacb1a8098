"""The hidden states that a model gives, by their shapes: what a learned rule is made for."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError


def state_of(model: Any, reader: str) -> tuple[int, jnp.dtype]:
    """Size and dtype of a `kljudge_jax.Model`'s final-norm states; nothing is compiled.

    Args:
      model: whose.
      reader: who wants them, for the message.

    Raises:
      InputError: it gives logits alone.
    """
    leaves, structure = jax.tree.flatten(model)
    found = _state(structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
    if found is None:
        raise InputError(
            f"{reader} reads hidden states, and that model gives logits alone (Features.hidden of Model.__call__ is "
            "None): give kljudge_jax.adapt its head, or choose a rule that reads none"
        )
    return found


@functools.lru_cache(maxsize=64)
def _state(structure: Any, leaves: tuple) -> tuple[int, jnp.dtype] | None:
    """Traced once for models of one structure: every call of `generate` asks."""

    def hidden(leaves: list[jax.Array], tokens: jax.Array) -> jax.Array | None:
        model = jax.tree.unflatten(structure, leaves)
        return model(tokens, model.init_cache(1, 1))[0].hidden

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves]
    found = jax.eval_shape(hidden, shapes, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    return None if found is None else (found.shape[-1], found.dtype)

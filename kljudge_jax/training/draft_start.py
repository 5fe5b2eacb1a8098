"""Where a head's training begins: a layer of the target, and the target's own output rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.kernels.quantize import QuantizedTensor, rows_of
from kljudge_jax.models.eagle3 import Eagle3Config
from kljudge_jax.models.linear import Embedding, Linear, matrix_of
from kljudge_jax.models.transformer import Transformer

# Of the embedding's half of attention's inputs, which no layer of the target has.
_NEW_WIDTH = 0.02


def output_rows(target: Transformer, ids: np.ndarray) -> np.ndarray:
    """The rows of the target's head for some tokens, f32 `[n, H]`."""
    if target.head is None:
        return np.asarray(_rows(target.embedding, ids))
    return np.asarray(_rows(target.head, ids))


def _rows(layer: Linear | Embedding, ids: np.ndarray) -> jax.Array:
    matrix = matrix_of(layer)
    at = jnp.asarray(ids, jnp.int32)
    if isinstance(matrix, QuantizedTensor):
        return rows_of(matrix, at, jnp.float32)
    return matrix[at].astype(jnp.float32)


def starting_values(target: Any, config: Eagle3Config, ids: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """A new head's parameters by dotted name, f32: `head.weight` is the target's, and stays as it is.

    Its layer is the target's last one, and its `fc` passes the last of the states through; the half of attention's
    inputs that reads embeddings is drawn at random.

    Raises:
      InputError: the target is not one of ours.
    """
    if not isinstance(target, Transformer):
        raise InputError("a head begins with a layer of the target, which has to be a model of ours")
    size, rng = config.decoder.hidden_size, np.random.default_rng(seed)
    block = target.layers[-1]
    values: dict[str, np.ndarray] = {"head.weight": output_rows(target, ids)}
    passed = np.zeros((size, len(config.layers) * config.target_size), np.float32)
    passed[:, -config.target_size :] = np.eye(size, config.target_size)
    values["fc.weight"] = passed

    def put(name: str, layer: Linear, joined: bool = False) -> None:
        weight = np.asarray(_rows(layer, np.arange(layer.shape[0])))
        if joined:
            new = _NEW_WIDTH * rng.standard_normal(weight.shape, np.float32)
            weight = np.concatenate([new, weight], axis=1)
        values[f"layers.0.{name}.weight"] = weight
        if layer.bias is not None:
            values[f"layers.0.{name}.bias"] = np.asarray(layer.bias[...], np.float32)

    for name in ("query", "key", "value"):
        put(f"attention.{name}", getattr(block.attention, name), joined=True)
    put("attention.out", block.attention.out)
    for name in ("gate", "up", "down"):
        put(f"mlp.{name}", getattr(block.mlp, name))
    if config.decoder.out_bias:
        values.setdefault("layers.0.attention.out.bias", np.zeros(size, np.float32))
    values["layers.0.attention_norm.scale"] = np.ones(size, np.float32)
    values["layers.0.hidden_norm.scale"] = np.asarray(block.attention_norm.scale[...])
    values["layers.0.mlp_norm.scale"] = np.asarray(block.mlp_norm.scale[...])
    values["final_norm.scale"] = np.asarray(target.final_norm.scale[...])
    return values

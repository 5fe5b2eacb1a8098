"""Decoders, their caches and their weights, and the pair of target and draft."""

from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.convert import convert
from kljudge_jax.models.orbax import OrbaxFolder, save
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.sources import open_checkpoint
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.models.weights import SafetensorsFolder, TensorSource, load

__all__ = [
    "KVCache",
    "ModelPair",
    "OrbaxFolder",
    "Rope",
    "SafetensorsFolder",
    "TensorSource",
    "Transformer",
    "TransformerConfig",
    "convert",
    "load",
    "open_checkpoint",
    "save",
]

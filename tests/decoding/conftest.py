"""Tiny random pairs: a target, and a draft that is the target with noise, so that it is right some of the time."""

import jax
import jax.numpy as jnp
import pytest

from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters


def tiny_config(vocab_size=23, **options):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    return TransformerConfig("tiny", vocab_size, head_dim=8, max_position=4096, **(sizes | options))


def sharpened(model, factor):
    """The model with `factor` times its logits: random models are otherwise unsure of everything."""
    names = list(parameters(model))
    leaves, structure = jax.tree.flatten(model)
    leaves = [leaf * factor if name == "final_norm.scale" else leaf for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def noisy(model, key, noise):
    """The model with every parameter moved by `noise` times its own spread."""
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + noise * (jnp.std(leaf) + 1e-3) * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def tiny_pair(seed=0, noise=0.2, eos=(), sharpness=3.0, **options):
    """A pair without a tokenizer."""
    key, noise_key = jax.random.split(jax.random.key(seed))
    target = sharpened(Transformer(tiny_config(**options), key), sharpness)
    return ModelPair(target, noisy(target, noise_key, noise), None, eos=tuple(eos))


@pytest.fixture(scope="session")
def pair():
    return tiny_pair()

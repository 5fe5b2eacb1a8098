"""Tiny random pairs: a target, and a draft that is the target with noise, so that it is right some of the time."""

import jax
import jax.numpy as jnp

from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters


def tiny_config(vocab_size=23, **options):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    return TransformerConfig("tiny", vocab_size, head_dim=8, max_position=4096, **(sizes | options))


def with_parameters(model, change):
    """The model with every parameter replaced by `change(name, value)`."""
    leaves, structure = jax.tree.flatten(model)
    named = zip(parameters(model), leaves, strict=True)
    return jax.tree.unflatten(structure, [change(name, leaf) for name, leaf in named])


def sharpened(model, factor):
    """The same model with `factor` times its logits: random models are otherwise unsure of everything."""
    return with_parameters(model, lambda name, x: x * factor if name == "final_norm.scale" else x)


def noisy(model, key, noise):
    """The model with every parameter moved by `noise` times its own spread."""
    keys = iter(jax.random.split(key, len(jax.tree.leaves(model))))

    def move(_, x):
        return x + noise * (jnp.std(x) + 1e-3) * jax.random.normal(next(keys), x.shape, x.dtype)

    return with_parameters(model, move)


def tiny_pair(seed=0, noise=0.2, eos=(), sharpness=3.0, tokenizer=None, **options):
    key, noise_key = jax.random.split(jax.random.key(seed))
    target = sharpened(Transformer(tiny_config(**options), key), sharpness)
    return ModelPair(target, noisy(target, noise_key, noise), tokenizer, eos=tuple(eos))


def byte_tokenizer():
    """A tokenizer of the 256 bytes and an end of text, id 256: every text has ids, and most ids are half a letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)} | {"<end>": 256}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")

"""Tiny random pairs: a target, and a draft that is the target with noise, so that it is right some of the time.

Compiling takes most of the time of these tests. All of them decode `PROMPTS`, or one prompt of up to 16 tokens, with at
most 40 new tokens in drafts of `DRAFT_LENGTH`, and every pair has one end-of-text id: so they share their programs.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import kljudge_jax as kj
from kljudge_jax.core.prefill import prefill
from kljudge_jax.core.protocols import Models
from kljudge_jax.core.state import Prefill
from kljudge_jax.kernels.product import tiled_where_native
from kljudge_jax.kernels.quantize import quantize
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.linear import Storage, is_matrix, quantized_parts
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import abstract, assemble, parameters

PROMPTS = [np.array([3, 1, 4]), np.array([1]), np.array([5, 9, 2, 6, 5, 3, 5, 8, 9]), np.array([2, 7])]
DRAFT_LENGTH = 4
VOCAB_SIZE = 257
END = 256
ONE_BY_ONE = Prefill(32, one_by_one=True)
NEVER = 999  # an end of text that no model writes


def tiny_config(vocab_size=VOCAB_SIZE, **options):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    return TransformerConfig("tiny", vocab_size, head_dim=8, max_position=4096, **(sizes | options))


def with_parameters(model, change):
    """The model with every parameter replaced by `change(name, array)`, a NumPy array in and out."""
    leaves, structure = jax.tree.flatten(model)
    named = zip(parameters(model), leaves, strict=True)
    return jax.tree.unflatten(structure, [jnp.asarray(change(name, np.array(leaf))) for name, leaf in named])


def sharpened(model, factor):
    """The same model with `factor` times its logits: random models are otherwise unsure of everything."""
    return with_parameters(model, lambda name, x: x * np.float32(factor) if name == "final_norm.scale" else x)


def noisy(model, seed, noise):
    """The model with every parameter moved by `noise` times its own spread."""
    random = np.random.default_rng(seed)
    return with_parameters(
        model, lambda name, x: x + np.float32(noise * (x.std() + 1e-3)) * _normal(random, name, x.shape)
    )


def tiny_model(seed=0, sharpness=3.0, **options):
    """A random model. NumPy fills it: JAX would compile an operation for every shape."""
    config, random = tiny_config(**options), np.random.default_rng(seed)

    def fill(name, shape):
        if name.endswith("scale"):
            return np.ones(shape, np.float32)
        return _normal(random, name, shape) * np.float32(config.hidden_size**-0.5)

    filled = {name: jnp.asarray(fill(name, leaf.shape)) for name, leaf in parameters(abstract(config)).items()}
    return sharpened(assemble(config, filled), sharpness)


def rounded(model, bits=8):
    """The model with its matrices in so many bits."""
    storage, values = dataclasses.replace(model.storage, bits=bits), parameters(model)
    for name, x in list(values.items()):
        if is_matrix(name):
            values |= quantized_parts(
                name, tiled_where_native(quantize(x, storage.scheme(name, x.shape[-1])), storage.place)
            )
    return assemble(model.config, values, storage)


def in_bfloat16(model):
    """The model with its matrices in bfloat16."""
    values = {name: x.astype(jnp.bfloat16) if is_matrix(name) else x for name, x in parameters(model).items()}
    return assemble(model.config, values, Storage(jnp.dtype(jnp.bfloat16)))


def tiny_pair(seed=0, noise=0.2, eos=(NEVER,), sharpness=3.0, tokenizer=None, **options):
    target = tiny_model(seed, sharpness, **options)
    return ModelPair(target, noisy(target, seed + 1, noise), tokenizer, eos=tuple(eos))


def text_pair(seed=10, noise=0.1):
    """A pair over bytes that writes letters and, whole or in halves, "é" and "€"."""
    tokenizer = byte_tokenizer()
    bytes_ = tokenizer("abcdefghij éé€€", add_special_tokens=False)["input_ids"]
    others = np.setdiff1d(np.arange(VOCAB_SIZE), bytes_)

    def silence(name, x):
        if name == "head.weight":
            x[others] = 0  # the largest logit is above 0
        return x

    pair = tiny_pair(seed, noise, (END,), tokenizer=tokenizer)
    return ModelPair(with_parameters(pair.target, silence), with_parameters(pair.draft, silence), tokenizer, eos=(END,))


def byte_tokenizer():
    """A tokenizer of the 256 bytes and an end of text, id 256: every text has ids, and most ids are half a letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)} | {"<end>": END}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def chunk_tokenizer():
    """A tokenizer whose token 7 is "[7]": every token has several characters, some of them in every token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"[{i}]": i for i in range(VOCAB_SIZE)}, unk_token="[0]"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def prefilled(model, prompts, lengths, slots, shared=0, plan=ONE_BY_ONE):
    """The model's cache once it has consumed padded prompts `[B, P]` but for the last token of each."""
    prompts, lengths = jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)
    empty = model.init_cache(len(prompts), slots)
    return prefill(Models(model), None, empty, (), prompts, lengths, shared, plan=plan)[0]


def answer(pair, verifier, prompts=PROMPTS, **options):
    """`generate` in the shapes that all share."""
    shared = {"draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
    return kj.generate(pair, prompts, verifier=verifier, **(shared | options))


def tokens_of(out):
    """The new tokens of a `Generation`, as lists."""
    return [row.tolist() for row in out.tokens]


def forced(model, tokens):
    """Logits `[T, V]` and states `[T, H]` of tokens `[T]`, T up to 64, by `score`."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    logits, hidden = kj.score(model, padded)
    # Cut by NumPy: JAX would compile a slice for every length.
    return np.asarray(logits)[0, : len(tokens)], np.asarray(hidden)[0, : len(tokens)]


def greedy_by_hand(model, prompt, steps):
    """The model's greedy answer, by scoring the whole sequence again for every token."""
    sequence = list(prompt)
    for _ in range(steps):
        sequence.append(int(forced(model, sequence)[0][-1].argmax()))
    return sequence[len(prompt) :]


@contextlib.contextmanager
def compilations():
    """Counts what is compiled in the block, eager operations included."""
    found = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def _normal(random, name, shape):
    """Draws for a parameter; for a weight `[O, I]` input by input, as the seeds that tests name were chosen."""
    if name.endswith(".weight"):
        return np.ascontiguousarray(random.standard_normal(shape[::-1], np.float32).T)
    return random.standard_normal(shape, np.float32)

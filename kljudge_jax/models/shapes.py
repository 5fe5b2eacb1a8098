"""Published model shapes, and models of such a shape with random weights: what a speed can be measured on."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from kljudge_jax.errors import InputError
from kljudge_jax.kernels.product import tiled_where_native
from kljudge_jax.kernels.quantize import quantize, stored_bits
from kljudge_jax.models import eagle3
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.draft_heads import HeadConfig, abstract_head
from kljudge_jax.models.eagle3 import Eagle3Config, Eagle3Head, default_layers
from kljudge_jax.models.eagle3_files import described_for
from kljudge_jax.models.families import config_from_hf
from kljudge_jax.models.linear import Storage, quantized_parts
from kljudge_jax.models.transformer import Transformer, abstract, assemble, fill, parameters
from kljudge_jax.parallel.free_memory import usable_memory
from kljudge_jax.spec import assigned, read_spec


def _llama3(factor: float, **sizes: Any) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": scaling | {"original_max_position_embeddings": 8192},
    } | sizes


def _qwen(family: str, longest: int, **sizes: Any) -> dict[str, Any]:
    return {
        "model_type": family,
        "vocab_size": 151936,
        "max_position_embeddings": longest,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
    } | sizes


def _gemma2(**sizes: Any) -> dict[str, Any]:
    return {"model_type": "gemma2", "vocab_size": 256000, "max_position_embeddings": 8192} | sizes


def _smollm2(theta: float, **sizes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "tie_word_embeddings": True,
    } | sizes


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    } | others


_TIED = {"tie_word_embeddings": True}

# What each model's config.json says, less what says nothing about its shape.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _llama3(8.0, **_sizes(4096, 14336, 32, 32, 8)),
    "llama-3.1-70b": _llama3(8.0, **_sizes(8192, 28672, 80, 64, 8)),
    "llama-3.1-405b": _llama3(8.0, **_sizes(16384, 53248, 126, 128, 8)),
    "llama-3.2-1b": _llama3(32.0, **_sizes(2048, 8192, 16, 32, 8, **_TIED)),
    "llama-3.2-3b": _llama3(32.0, **_sizes(3072, 8192, 28, 24, 8, **_TIED)),
    "qwen2.5-0.5b": _qwen("qwen2", 32768, **_sizes(896, 4864, 24, 14, 2, **_TIED)),
    "qwen2.5-1.5b": _qwen("qwen2", 131072, **_sizes(1536, 8960, 28, 12, 2, **_TIED)),
    "qwen2.5-7b": _qwen("qwen2", 131072, **_sizes(3584, 18944, 28, 28, 4, vocab_size=152064)),
    "qwen2.5-32b": _qwen("qwen2", 131072, **_sizes(5120, 27648, 64, 40, 8, vocab_size=152064)),
    "qwen2.5-72b": _qwen("qwen2", 131072, **_sizes(8192, 29568, 80, 64, 8, vocab_size=152064)),
    "qwen3-0.6b": _qwen("qwen3", 40960, **_sizes(1024, 3072, 28, 16, 8, head_dim=128, **_TIED)),
    "qwen3-8b": _qwen("qwen3", 40960, **_sizes(4096, 12288, 36, 32, 8, head_dim=128)),
    "qwen3-32b": _qwen("qwen3", 40960, **_sizes(5120, 25600, 64, 64, 8, head_dim=128)),
    "gemma-2-2b": _gemma2(**_sizes(2304, 9216, 26, 8, 4, head_dim=256, query_pre_attn_scalar=256)),
    "gemma-2-9b": _gemma2(**_sizes(3584, 14336, 42, 16, 8, head_dim=256, query_pre_attn_scalar=256)),
    "gemma-2-27b": _gemma2(**_sizes(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144)),
    "smollm2-135m": _smollm2(100000.0, **_sizes(576, 1536, 30, 9, 3)),
    "smollm2-360m": _smollm2(100000.0, **_sizes(960, 2560, 32, 15, 5)),
    "smollm2-1.7b": _smollm2(130000.0, **_sizes(2048, 8192, 24, 32, 32)),
}


# Shapes of heads, which are of a target's sizes.
HEADS = ("eagle3",)


def shape_config(spec: str) -> TransformerConfig:
    """The configuration of a published shape: `llama-3.1-8b`, or `llama-3.1-8b:layers=4`, its first layers alone.

    Raises:
      InputError: no such shape, or more layers than it has.
    """
    name, items = read_spec(spec)
    if name not in SHAPES:
        raise InputError(f"choose a shape of {', '.join(SHAPES)}, not {name!r}")
    config = config_from_hf(SHAPES[name])
    if not items:
        return config
    usage = f"{name}:layers=N with an N from 1 to {config.num_layers}"
    number = assigned(spec, ["layers"], usage)["layers"]
    if not number.isdecimal() or not 1 <= int(number) <= config.num_layers:
        raise InputError(f"write {usage}, not {spec!r}")
    layers = int(number)
    return dataclasses.replace(config, num_layers=layers, windows=config.windows[:layers])


def head_shape(spec: str, target: TransformerConfig) -> Eagle3Config:
    """The shape of a head for a target: `eagle3:vocab=32000`, a layer like the target's and so many tokens.

    Raises:
      InputError: no such head, or more tokens than the target has, or a target of too few layers.
    """
    name, _ = read_spec(spec)
    if name not in HEADS:
        raise InputError(f"choose a shape of a head, {', '.join(HEADS)}, not {name!r}")
    usage = f"{name}:vocab=N with an N from 1 to {target.vocab_size}"
    number = assigned(spec, ["vocab"], usage).get("vocab", "")
    if not number.isdecimal() or not 1 <= int(number) <= target.vocab_size:
        raise InputError(f"write {usage}, not {spec!r}")
    if min(default_layers(target.num_layers)) < 0:
        raise InputError(f"an EAGLE-3 head reads layers of a target that has 3 or more, not {target.num_layers}")
    return described_for(target, int(number))


def is_head_shape(name: str) -> bool:
    """Whether a name is the spec of a head's shape."""
    return name.partition(":")[0].strip() in HEADS


def count_parameters(config: TransformerConfig | HeadConfig) -> int:
    """How many parameters a model, or a head, of that shape has; a head tied to the embedding counts once."""
    if isinstance(config, HeadConfig):
        found = parameters(abstract_head(config))
        return sum(math.prod(leaf.shape) for name, leaf in found.items() if name != "ids")
    return sum(math.prod(leaf.shape) for leaf in parameters(abstract(config)).values())


@functools.lru_cache
def bytes_per_device(config: TransformerConfig | HeadConfig, storage: Storage = Storage()) -> int:  # noqa: B008
    """What the parameters of a model, or of a head, take of each device's memory."""

    def total(model: Any) -> int:
        found = 0
        for name, leaf in parameters(model).items():
            share = _sharding(name, leaf.shape, storage).shard_shape(leaf.shape)
            found += math.ceil(math.prod(share) * stored_bits(leaf.dtype) / 8)
        return found

    if isinstance(config, HeadConfig):
        return total(abstract_head(config, storage))

    # Layers are alike, so two of them say what all take; 126 would take seconds.
    def of(layers: int) -> int:
        return total(abstract(dataclasses.replace(config, num_layers=layers, windows=config.windows[:layers]), storage))

    return of(1) + (config.num_layers - 1) * (of(2) - of(1)) if config.num_layers > 1 else of(1)


def check_weights_fit(models: Sequence[tuple[TransformerConfig | HeadConfig, Storage]]) -> None:
    """Raises InputError, with the numbers, where models to be loaded take more than their devices have left."""
    layout = models[0][1].layout
    free = usable_memory(None if layout is None else layout.mesh)
    weights = sum(bytes_per_device(config, storage) for config, storage in models)
    if free is not None and weights > free:
        raise InputError(
            f"each device would hold {weights / 1e9:.1f} GB of weights, and {free / 1e9:.1f} GB are free: spread the "
            "models over more devices (tensor=N in the mesh), dtype bfloat16, bits 8, or smaller models"
        )


def draft_shape(spec: str, target: TransformerConfig) -> TransformerConfig | Eagle3Config:
    """The configuration of a draft of that target by its shape: a model's, with the target's vocabulary, or a head's.

    Raises:
      InputError: as `shape_config` and `head_shape`.
    """
    if is_head_shape(spec):
        return head_shape(spec, target)
    return dataclasses.replace(shape_config(spec), vocab_size=target.vocab_size)


def random_model(config: TransformerConfig, storage: Storage, seed: int = 0) -> Transformer:
    """A model of that shape with random weights, drawn on the device, one tensor at a time.

    Args:
      config: the shape.
      storage: how matrices are kept, and where; norm scales are float32 ones.
      seed: of the draws.
    """
    named = parameters(abstract(config, Storage(storage.dtype)))
    return assemble(config, _drawn(named, config.hidden_size, storage, seed), storage)


def random_head(config: Eagle3Config, storage: Storage, seed: int = 0) -> Eagle3Head:
    """A head of that shape with random weights, as `random_model`, that drafts tokens all over the vocabulary."""
    named = parameters(eagle3.abstract(config, Storage(storage.dtype)))
    del named["ids"]
    values = _drawn(named, config.decoder.hidden_size, storage, seed)
    rows, vocab = config.draft_vocab, config.decoder.vocab_size
    ids = (np.arange(rows, dtype=np.int64) * vocab // rows).astype(np.int32)
    values["ids"] = jax.device_put(ids, _sharding("ids", ids.shape, storage))
    return fill(eagle3.abstract(config, storage), values)


def _drawn(named: dict[str, Any], hidden_size: int, storage: Storage, seed: int) -> dict[str, jax.Array]:
    """Random parameters of those names and shapes, kept as `storage` says."""
    # The numbers come from the device's own generator: nothing hangs on how random they are, and the default one would
    # take minutes for billions of them on a CPU.
    key = jax.random.key(seed, impl="unsafe_rbg")
    values = {}
    for i, (name, leaf) in enumerate(named.items()):
        sharding = _sharding(name, leaf.shape, storage)
        if name.endswith("scale"):
            values[name] = jnp.ones(leaf.shape, leaf.dtype, device=sharding)
        elif name.endswith("bias"):
            values[name] = jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
        else:
            values[name] = _fill(sharding)(jax.random.fold_in(key, i), leaf.shape, leaf.dtype, hidden_size)
            scheme = storage.scheme(name, leaf.shape[-1])
            if scheme is not None:
                parts = quantized_parts(name, tiled_where_native(quantize(values[name], scheme), storage.place))
                values |= {part: jax.device_put(x, _sharding(part, x.shape, storage)) for part, x in parts.items()}
    return values


def _fill(sharding):
    return jax.jit(_uniform, static_argnums=(1, 2, 3), out_shardings=sharding)


def _uniform(key, shape, dtype, hidden_size):
    # As wide as the normal draw of the same scale that a `Transformer` begins with.
    width = math.sqrt(3 / hidden_size)
    return jax.random.uniform(key, shape, dtype, -width, width)


def _sharding(name: str, shape: tuple[int, ...], storage: Storage):
    return storage.sharding(name, shape) or SingleDeviceSharding(jax.devices()[0])

"""The DFlash head: some layers that read the target's own states and fill in a block of tokens in one pass."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kljudge_jax.errors import InputError
from kljudge_jax.models.attention import attend_block, split_by_heads
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.int8_cache import Int8Cache
from kljudge_jax.models.linear import Linear, Storage, side_by_side
from kljudge_jax.models.transformer import MLP, Attention, RMSNorm, rotate
from kljudge_jax.parallel.layout import Layout


@dataclasses.dataclass(frozen=True)
class DFlashConfig:
    """The shape of a head. Hashable.

    Attributes:
      decoder: of its layers; hidden size and `vocab_size` are the target's.
      layers: the target's layers that it reads, as `Model.__call__` counts them.
      block_size: the tokens of a block: the last one known, and the masks that are filled in.
      mask_id: the token that stands for one not known yet.
    """

    decoder: TransformerConfig
    layers: tuple[int, ...]
    block_size: int
    mask_id: int


class BlockAttention(Attention):
    """Attention of a block over a context, whose keys and values come of the target's states, and over itself."""

    def keys_and_values(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of `[B, T, H]` at int32 positions `[B, T]`: `[B, T, G, D]` each, keys normed and rotated."""
        found = (y.astype(x.dtype) for y in side_by_side(x, self.key, self.value))
        key, value = (y.reshape(*positions.shape, self.config.num_kv_heads, self.config.head_dim) for y in found)
        return self._turned(key, self.key_norm, positions), value

    def of_block(self, x: jax.Array, positions: jax.Array, context: Any, length: jax.Array) -> jax.Array:
        """What a block `[B, T, H]` reads of itself and of a layer of a cache, the first `length` int32 `[B]` slots."""
        heads, dim = self.config.num_heads, self.config.head_dim
        query = self.query(x).reshape(*positions.shape, heads, dim)
        query = self._turned(query, self.query_norm, positions) * jnp.asarray(dim**-0.5, x.dtype)
        key, value = self.keys_and_values(x, positions)
        # By XLA everywhere: the kernels that read no more than was written are causal, and a block sees all of itself.
        read = {"layout": self.layout, "scales": context.scales}
        mixed = attend_block(query, key, value, context.keys, context.values, length, **read)
        return self.out(split_by_heads(mixed.reshape(*positions.shape, heads * dim), self.layout))

    def _turned(self, x: jax.Array, norm: RMSNorm | None, positions: jax.Array) -> jax.Array:
        return rotate(x if norm is None else norm(x), positions, self.config.rope)


class DFlashBlock(nnx.Module):
    """One layer: attention and MLP, each normed before."""

    def __init__(self, key: jax.Array, config: TransformerConfig, layer: int, storage: Storage):
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, storage.place)
        self.attention = BlockAttention(attention_key, config, layer, storage)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, storage.place)
        self.mlp = MLP(mlp_key, config, layer, storage)

    def __call__(self, x: jax.Array, positions: jax.Array, context: Any, length: jax.Array) -> jax.Array:
        """x `[B, T, H]`, positions int32 `[B, T]`, context a layer of a cache of `length` int32 `[B]` tokens."""
        mixed = self.attention.of_block(self.attention_norm(x), positions, context, length)
        x, normed = self.mlp_norm.of_sum(x, mixed)
        return x + self.mlp(normed)


class DFlashHead(nnx.Module):
    """A DFlash head with random weights; `models.dflash_files` fills it with real ones.

    Slot p of its cache holds what its layers make of the target's states at position p: it is written once, as those
    are there, and a block changes nothing in it. A block begins with the last token known and goes on with masks; each
    of them comes out as a distribution of its own, given the context and none of the other masks. Embeddings and output
    rows are the target's. A pytree like `Transformer`, and like it no `Model`: it cannot read tokens without a target.

    Source: DFlash, arXiv 2602.06036; the format is that of z-lab, vLLM and SGLang.

    Attributes:
      config: the shape.
      storage: how its matrices are kept, and where.
    """

    kind: ClassVar[str] = "DFlash"

    def __init__(self, config: DFlashConfig, key: jax.Array, storage: Storage = Storage()):  # noqa: B008 - frozen
        decoder = config.decoder
        keys = jax.random.split(key, decoder.num_layers + 1)
        hidden, joined = decoder.hidden_size, len(config.layers) * decoder.hidden_size
        self.config = config
        self.storage = storage = dataclasses.replace(storage, platform=storage.place.platform)
        self.fc = Linear(keys[-1], joined, hidden, False, storage, storage.scheme("fc.weight", joined))
        self.hidden_norm = RMSNorm(hidden, decoder.norm_eps, storage.place)
        self.layers = nnx.List([DFlashBlock(keys[i], decoder, i, storage) for i in range(decoder.num_layers)])
        self.final_norm = RMSNorm(hidden, decoder.norm_eps, storage.place)

    @property
    def dtype(self) -> Any:
        """Of its products."""
        return self.storage.dtype

    @property
    def layout(self) -> Layout | None:
        """Where it lies on a mesh; None is one device."""
        return self.storage.layout

    @property
    def vocab_size(self) -> int:
        """V, the target's."""
        return self.config.decoder.vocab_size

    @property
    def max_length(self) -> int | None:
        """The target's own: positions turn by rope, and nothing is learned of them."""
        return None

    def init_cache(self, batch: int, slots: int) -> KVCache | Int8Cache:
        """An empty cache of its layers."""
        if self.storage.cache_bits is not None:
            return Int8Cache.create(self.config.decoder, batch, slots, self.layout, self.storage.platform)
        return KVCache.create(self.config.decoder, batch, slots, self.dtype, self.layout, self.storage.platform)

    def observe(self, layers: tuple[jax.Array, ...], cache: Any) -> Any:
        """The cache with what the target's states `[B, T, H]`, one array a layer, add after what it holds."""
        start, length = cache.length, layers[0].shape[1]
        positions = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        joined = self.fc.in_float32(jnp.concatenate(layers, axis=-1).astype(self.dtype))
        features = self.hidden_norm(self._whole(joined).astype(self._between))
        stored = [
            cache.layer(i).write(*block.attention.keys_and_values(features, positions), start)
            for i, block in enumerate(self.layers)
        ]
        return cache.with_layers(stored, start + length)

    def __call__(self, embeddings: jax.Array, cache: Any) -> jax.Array:
        """States `[B, T, H]` of a block with these embeddings `[B, T, H]`, after the final norm: of the embeddings'
        dtype, for the target's output rows. The block stands after what the cache holds, which stays as it is."""
        length = cache.length
        positions = length[:, None] + jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None]
        x = self._whole(embeddings).astype(self._between)
        for i, block in enumerate(self.layers):
            x = self._whole(block(x, positions, cache.layer(i), length))
        return self.final_norm(x).astype(embeddings.dtype)

    def check_target(self, target: Any, name: str) -> None:
        """Raises InputError, with all that is wrong, if it cannot draft for that model."""
        config, faults = self.config, []
        count, size = getattr(target, "num_layers", 0), config.decoder.hidden_size
        if not count or max(config.layers) > count:
            faults.append(f"it cannot be asked for layers {list(config.layers)}: it names {count}")
        if not callable(getattr(target, "embed", None)):
            faults.append("it has no method 'embed' (int32 [...] to [..., H])")
        found = getattr(getattr(target, "config", None), "hidden_size", size)
        if found != size:
            faults.append(f"its hidden size is {found} instead of {size}")
        if config.mask_id >= target.vocab_size:
            faults.append(f"it has {target.vocab_size} tokens, and the mask is token {config.mask_id}")
        if faults:
            raise InputError(f"the DFlash head cannot draft for {name}: {'; '.join(faults)}")

    @property
    def _between(self) -> Any:
        """The dtype of states between layers, as of a model's."""
        return jnp.float32 if self.storage.place.native else self.dtype

    def _whole(self, x: jax.Array) -> jax.Array:
        return x if self.layout is None else self.layout.constrain(x, None)


def abstract(config: DFlashConfig, storage: Storage = Storage()) -> DFlashHead:  # noqa: B008 - frozen
    """The head with a `ShapeDtypeStruct` in place of each parameter."""
    return jax.eval_shape(lambda: DFlashHead(config, jax.random.key(0), storage))

"""The EAGLE-3 head: one layer that reads the target's own states and drafts token after token."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kljudge_jax.errors import InputError
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.int8_cache import Int8Cache
from kljudge_jax.models.linear import Embedding, Linear, Storage
from kljudge_jax.models.transformer import MLP, Attention, RMSNorm
from kljudge_jax.parallel.axes import VOCAB
from kljudge_jax.parallel.layout import Layout


@dataclasses.dataclass(frozen=True)
class Eagle3Config:
    """The shape of a head. Hashable.

    Attributes:
      decoder: of its one layer; `vocab_size` is the target's, V.
      layers: the target's layers that it reads, as `Model.__call__` counts them.
      target_size: the target's hidden size.
      draft_vocab: Vd, how many of the V tokens it can draft.
      norm_before_residual: the residual stream begins with the normed feature.
      own_embedding: it has a table of embeddings; else the target's is read.
    """

    decoder: TransformerConfig
    layers: tuple[int, ...]
    target_size: int
    draft_vocab: int
    norm_before_residual: bool = False
    own_embedding: bool = False


def default_layers(num_layers: int) -> tuple[int, int, int]:
    """The layers that are read of a target of so many, where a head does not name its own."""
    return 2, num_layers // 2, num_layers - 3


class Eagle3Block(nnx.Module):
    """A layer over `[embedding; feature]`, each normed; the residual stream is that of the feature."""

    def __init__(self, key: jax.Array, config: Eagle3Config, storage: Storage):
        attention_key, mlp_key = jax.random.split(key)
        decoder = config.decoder

        def norm():
            return RMSNorm(decoder.hidden_size, decoder.norm_eps, storage.place)

        self.attention_norm = norm()
        self.hidden_norm = norm()
        self.attention = Attention(attention_key, decoder, 0, storage, 2 * decoder.hidden_size)
        self.mlp_norm = norm()
        self.mlp = MLP(mlp_key, decoder, 0, storage)
        self.norm_before_residual = config.norm_before_residual

    def __call__(self, features, embeddings, positions, stored):
        """features and embeddings `[B, T, H]`, positions `[B, T]`, stored a layer of a cache or None."""
        residual, joined = self.joined(features, embeddings)
        attended, stored = self.attention(joined, positions, stored)
        x, normed = self.mlp_norm.of_sum(residual, attended)
        return x + self.mlp(normed), stored

    def joined(self, features: jax.Array, embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The residual stream `[B, T, H]`, and what attention reads `[B, T, 2 H]`."""
        normed = self.hidden_norm(features)
        joined = jnp.concatenate([self.attention_norm(embeddings).astype(normed.dtype), normed], axis=-1)
        return (normed if self.norm_before_residual else features), joined


class Eagle3Head(nnx.Module):
    """An EAGLE-3 head with random weights; `models.eagle3_files` fills it with real ones.

    Entry p of its sequence is the target's feature at position p, or the head's own output there, and the token at
    p + 1; it predicts the token at p + 2. A pytree like `Transformer`, and like it no `Model`: it cannot read tokens
    without a target.

    Source: EAGLE-3, arXiv 2503.01840; the format is that of SpecForge, vLLM and SGLang.

    Attributes:
      config: the shape.
      storage: how its matrices are kept, and where.
      ids: int32 `[Vd]`, ascending, the target's ids of what it can draft.
    """

    kind: ClassVar[str] = "EAGLE-3"

    def __init__(self, config: Eagle3Config, key: jax.Array, storage: Storage = Storage()):  # noqa: B008 - frozen
        keys = jax.random.split(key, 4)
        decoder = config.decoder
        hidden, joined = decoder.hidden_size, len(config.layers) * config.target_size
        self.config = config
        self.storage = storage = dataclasses.replace(storage, platform=storage.place.platform)
        self.fc = Linear(keys[0], joined, hidden, False, storage, storage.scheme("fc.weight", joined))
        self.layers = nnx.List([Eagle3Block(keys[1], config, storage)])
        self.final_norm = RMSNorm(hidden, decoder.norm_eps, storage.place)
        self.head = Linear(keys[2], hidden, config.draft_vocab, False, storage, storage.scheme("head.weight", hidden))
        self.ids = nnx.Variable(jnp.arange(config.draft_vocab, dtype=jnp.int32))
        # Assigned once: nnx would take what is None at first for static.
        scheme = storage.scheme("embedding.table", hidden)
        own = config.own_embedding
        self.embedding = Embedding(keys[3], decoder.vocab_size, hidden, storage, scheme) if own else None

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

    @property
    def between(self) -> Any:
        """The dtype of its states, as of those between a model's layers."""
        return jnp.float32 if self.storage.place.native else self.dtype

    def init_cache(self, batch: int, slots: int) -> KVCache | Int8Cache:
        """An empty cache of its layer."""
        if self.storage.cache_bits is not None:
            return Int8Cache.create(self.config.decoder, batch, slots, self.layout, self.storage.platform)
        return KVCache.create(self.config.decoder, batch, slots, self.dtype, self.layout, self.storage.platform)

    def features(self, layers: tuple[jax.Array, ...]) -> jax.Array:
        """What it reads of the target's states `[B, T, Ht]`, one array a layer: `[B, T, H]`."""
        return self._whole(self.fc.in_float32(jnp.concatenate(layers, axis=-1).astype(self.dtype))).astype(self.between)

    def __call__(self, features: jax.Array, embeddings: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Consumes entries after what the cache holds.

        Args:
          features: `[B, T, H]`, of `features`, or states that this returned.
          embeddings: `[B, T, H]`, of the tokens that follow.
          cache: of `init_cache`.

        Returns:
          its states `[B, T, H]`, before the final norm: features of the next entries. And the cache, T entries longer.
        """
        start, length = cache.length, features.shape[1]
        positions = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        x, embeddings = features.astype(self.between), embeddings.astype(self.between)
        x, stored = self.layers[0](x, embeddings, positions, cache.layer(0))
        return self._whole(x), cache.with_layers([stored], start + length)

    def check_target(self, target: Any, name: str) -> None:
        """Raises InputError, with all that is wrong, if it cannot draft for that model."""
        asked, own, faults = self.config.layers, self.config.target_size, []
        count = getattr(target, "num_layers", 0)
        if not count or max(asked) > count:
            faults.append(f"it cannot be asked for layers {list(asked)}: it names {count}")
        if self.embedding is None and not callable(getattr(target, "embed", None)):
            faults.append("it has no method 'embed' (int32 [...] to [..., H]), and the head no embeddings of its own")
        size = getattr(getattr(target, "config", None), "hidden_size", own)
        if size != own:
            faults.append(f"its hidden size is {size} instead of {own}")
        if faults:
            raise InputError(f"the EAGLE-3 head cannot draft for {name}: {'; '.join(faults)}")

    def embed(self, tokens: jax.Array, target: Any) -> jax.Array:
        """Embeddings `[..., H]` of tokens int32 `[...]`: its own, or the target's."""
        return target.embed(tokens) if self.embedding is None else self.embedding(tokens)

    def draft_logits(self, states: jax.Array) -> jax.Array:
        """Logits of the tokens that it can draft, f32 `[..., Vd]`, of states `[..., H]`."""
        return self.head.in_float32(self.final_norm(states).astype(self.dtype))

    def logits(self, states: jax.Array) -> jax.Array:
        """Logits f32 `[..., V]`; -inf at what it cannot draft."""
        return self.spread(self.draft_logits(states))

    def spread(self, compact: jax.Array) -> jax.Array:
        """Logits `[..., Vd]` as those of all tokens, `[..., V]`."""
        if self.config.draft_vocab == self.vocab_size:
            return compact
        # Rows as one axis: a TPU scatters with them in its 128 lanes, and pads each axis that lies there.
        rows = compact.reshape(-1, compact.shape[-1])
        every = jnp.full((len(rows), self.vocab_size), -jnp.inf, jnp.float32)
        spread = every.at[:, self.ids[...]].set(rows, indices_are_sorted=True, unique_indices=True)
        spread = spread.reshape(*compact.shape[:-1], self.vocab_size)
        return spread if self.layout is None else self.layout.constrain(spread, VOCAB)

    def _whole(self, x: jax.Array) -> jax.Array:
        return x if self.layout is None else self.layout.constrain(x, None)


def abstract(config: Eagle3Config, storage: Storage = Storage()) -> Eagle3Head:  # noqa: B008 - frozen
    """The head with a `ShapeDtypeStruct` in place of each parameter."""
    return jax.eval_shape(lambda: Eagle3Head(config, jax.random.key(0), storage))

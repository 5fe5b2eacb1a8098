"""One decoder for every family: the same forward serves prefill, draft steps and verification."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from kljudge_jax.core.protocols import Features
from kljudge_jax.kernels.norm import rms_norm, sum_and_norm
from kljudge_jax.kernels.place import Place
from kljudge_jax.models.attention import attend, split_by_heads, squeeze
from kljudge_jax.models.cache import KVCache, Positions, numbers_only
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.int8_cache import Int8Cache
from kljudge_jax.models.linear import Embedding, Linear, Storage, side_by_side
from kljudge_jax.models.ranked_head import RankedHead, ranked_name
from kljudge_jax.parallel.axes import VOCAB
from kljudge_jax.parallel.layout import Layout

Tree = TypeVar("Tree")

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` over the last axis, in float32. `scale` stays float32 whatever the model's dtype."""

    def __init__(self, size: int, eps: float, place: Place):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps
        self.place = place

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps, self.place)

    def of_sum(self, x: jax.Array, more: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`x + more`, and its norm."""
        return sum_and_norm(x, more, self.scale[...], self.eps, self.place)


def _duplicates_row(tokens: jax.Array, place: Place) -> bool:
    """Whether a single token on a GPU is computed in two equal rows.

    XLA makes one kernel of a norm over two rows, and three of a norm over one; its products of two rows are faster
    too. On an H100 a pass of one token took 0.86 (1B) and 0.95 (8B) times as long that way.
    """
    return tokens.size == 1 and place == Place("gpu")


def _twice(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, x], axis=1)


def rotate(x: jax.Array, positions: jax.Array, rope: Rope) -> jax.Array:
    """Applies rope to x `[B, T, heads, D]` at int32 positions `[B, T]`; dimension i turns with i + D/2."""
    frequencies = jnp.asarray(rope.frequencies(x.shape[-1]))[None, None, None]
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention of one layer, over inputs of the hidden size or of `in_size`."""

    def __init__(
        self, key: jax.Array, config: TransformerConfig, layer: int, storage: Storage, in_size: int | None = None
    ):
        keys = jax.random.split(key, 4)
        inner, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        width = in_size or config.hidden_size

        def linear(name, key, in_size, out_size, bias):
            scheme = storage.scheme(f"layers.{layer}.attention.{name}.weight", in_size)
            return Linear(key, in_size, out_size, bias, storage, scheme)

        self.query = linear("query", keys[0], width, inner, config.qkv_bias)
        self.key = linear("key", keys[1], width, shared, config.qkv_bias)
        self.value = linear("value", keys[2], width, shared, config.qkv_bias)
        self.out = linear("out", keys[3], inner, config.hidden_size, config.out_bias)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps, storage.place) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps, storage.place) if config.qk_norm else None
        self.config = config
        self.layer = layer
        self.layout = storage.layout

    def __call__(self, x, positions, stored):
        """x `[B, T, I]`, positions `[B, T]`, stored a layer of a cache or None: `[B, T, H]` and stored.

        A token that x holds twice has one position, is stored once, and comes out twice.
        """
        config, (batch, length) = self.config, positions.shape  # x may hold a row twice
        heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
        projected = side_by_side(x, self.query, self.key, self.value)
        query, key, value = (y.astype(x.dtype)[:, :length] for y in projected)
        query = query.reshape(batch, length, heads, dim)
        key, value = key.reshape(batch, length, groups, dim), value.reshape(batch, length, groups, dim)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        rope = config.layer_rope(self.layer)
        query, key = rotate(query, positions, rope), rotate(key, positions, rope)
        scale = config.query_scale if config.query_scale is not None else dim**-0.5
        query = query * jnp.asarray(scale, query.dtype)
        sees = {"window": config.window(self.layer) or 0, "softcap": config.attention_softcap or 0.0}
        if stored is not None:
            mixed, stored = stored.attend(query, key, value, positions, **sees)
        else:
            key, value = (self._placed(y.swapaxes(1, 2)) for y in numbers_only(key, value))
            mixed = attend(query, key, value, positions, positions[:, None, :], layout=self.layout, **sees)
        mixed = mixed.reshape(batch, length, heads * dim).astype(x.dtype)
        if x.shape[1] > length:
            mixed = _twice(mixed)
        return self.out(split_by_heads(mixed, self.layout)), stored

    def _placed(self, x: jax.Array) -> jax.Array:
        return x if self.layout is None else self.layout.attention(x)


class MLP(nnx.Module):
    """The gated feed-forward of one layer: `down(activation(gate(x)) * up(x))`."""

    def __init__(self, key: jax.Array, config: TransformerConfig, layer: int, storage: Storage):
        keys = jax.random.split(key, 3)

        def linear(name, key, in_size, out_size):
            scheme = storage.scheme(f"layers.{layer}.mlp.{name}.weight", in_size)
            return Linear(key, in_size, out_size, config.mlp_bias, storage, scheme)

        self.gate = linear("gate", keys[0], config.hidden_size, config.intermediate_size)
        self.up = linear("up", keys[1], config.hidden_size, config.intermediate_size)
        self.down = linear("down", keys[2], config.intermediate_size, config.hidden_size)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = side_by_side(x, self.gate, self.up)
        # Rounded once: in 16 bits it would be rounded at every step, and take several times as long on a CPU.
        return self.down((_ACTIVATIONS[self.activation](gate) * up).astype(x.dtype))


class Block(nnx.Module):
    """One layer: attention and MLP, each normed before and, in Gemma 2 and 3, after."""

    def __init__(self, key: jax.Array, config: TransformerConfig, layer: int, storage: Storage):
        attention_key, mlp_key = jax.random.split(key)

        def norm():
            return RMSNorm(config.hidden_size, config.norm_eps, storage.place)

        self.attention_norm = norm()
        self.attention = Attention(attention_key, config, layer, storage)
        self.mlp_norm = norm()
        self.mlp = MLP(mlp_key, config, layer, storage)
        self.post_attention_norm = norm() if config.post_norms else None
        self.post_mlp_norm = norm() if config.post_norms else None

    def __call__(self, x, positions, stored):
        attended, stored = self.attention(self.attention_norm(x), positions, stored)
        if self.post_attention_norm is not None:
            attended = self.post_attention_norm(attended)
        x, normed = self.mlp_norm.of_sum(x, attended)
        fed = self.mlp(normed)
        return x + (self.post_mlp_norm(fed) if self.post_mlp_norm is not None else fed), stored


class Transformer(nnx.Module):
    """A decoder-only transformer with random weights; `models.weights` fills it with real ones.

    A pytree whose leaves are its parameters and whose structure carries `config`: pass it through `jax.jit` as an
    argument like any other.

    Attributes:
      config: the shape.
      storage: how its matrices are kept, and where.
    """

    def __init__(self, config: TransformerConfig, key: jax.Array, storage: Storage = Storage()):  # noqa: B008 - frozen
        keys = jax.random.split(key, config.num_layers + 2)
        vocab, hidden = config.vocab_size, config.hidden_size
        self.config = config
        self.storage = storage = dataclasses.replace(storage, platform=storage.place.platform)
        self.embedding = Embedding(keys[0], vocab, hidden, storage, storage.scheme("embedding.table", hidden))
        self.layers = nnx.List([Block(keys[i + 1], config, i, storage) for i in range(config.num_layers)])
        self.final_norm = RMSNorm(hidden, config.norm_eps, storage.place)
        self.head = _head(keys[-1], config, storage)

    @property
    def dtype(self):
        """Of the hidden states that it returns."""
        return self.storage.dtype

    @property
    def _between(self):
        """The dtype of hidden states between layers: nothing is rounded there that XLA may round or not, by what it
        fuses, where a row is to be the same to the bit whatever stands beside it. It costs nothing on a CPU."""
        return jnp.float32 if self.storage.place.native else self.dtype

    @property
    def layout(self) -> Layout | None:
        """Where it lies on a mesh, and what it works out there; None is one device."""
        return self.storage.layout

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def max_length(self) -> int:
        return self.config.max_position

    def init_cache(self, batch: int, slots: int) -> KVCache | Int8Cache:
        """An empty cache of so many rows and slots, laid out as the model is."""
        if self.storage.cache_bits is not None:
            return Int8Cache.create(self.config, batch, slots, self.layout, self.storage.platform)
        return KVCache.create(self.config, batch, slots, self.dtype, self.layout, self.storage.platform)

    def __call__(
        self, tokens: jax.Array, cache: Positions | None = None, *, layers: tuple[int, ...] = ()
    ) -> tuple[Features, Any]:
        """Consumes tokens after what the cache holds.

        Args:
          tokens: int32 `[B, T]`; row b's first one stands at position `cache.length[b]` (0 without a cache).
          cache: keys and values of what came before; `cache.length + T` may not pass its slots. It may have more layers
            than the model, which it then keeps as they are.
          layers: whose residual streams are wanted: i is that after i blocks, 0 the embeddings.

        Returns:
          features: final-norm states `[B, T, H]`, where `hidden[:, t]` has consumed `tokens[:, :t + 1]`, and those of
            `layers`.
          cache: with T more tokens in every row; None if none was given.
        """
        start = cache.length if cache is not None else jnp.zeros((tokens.shape[0],), jnp.int32)
        length = tokens.shape[1]
        positions = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        x = self._whole(self.embed(tokens)).astype(self._between)
        if _duplicates_row(tokens, self.storage.place):
            x = _twice(x)
        streams, written = {0: x}, []
        for i, block in enumerate(self.layers):
            x, stored = block(x, positions, None if cache is None else cache.layer(i))
            streams[i + 1] = x = self._whole(x)
            written.append(stored)
        if cache is not None:
            cache = cache.with_layers(written, start + length)
        wanted = tuple(self._rounded(streams[i])[:, :length] for i in layers)
        return Features(self._rounded(self.final_norm(x))[:, :length], wanted), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits of final-norm states `[..., H]`: f32 `[..., V]`, -inf where a ranked head has no row."""
        raw = self.embedding.attend(hidden) if self.head is None else self.head.in_float32(hidden)
        logits = squeeze(raw, self.config.final_softcap)
        if isinstance(self.head, RankedHead):
            logits = self.head.over_vocabulary(logits)
        return logits if self.layout is None else self.layout.constrain(logits, VOCAB)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of tokens int32 `[...]`: `[..., H]`, as the first layer takes them."""
        x = self.embedding(tokens)
        return x * jnp.asarray(self.config.embedding_scale, x.dtype)

    def first(self, count: int) -> Transformer:
        """The model cut after so many layers, with the same arrays; it takes the whole model's caches."""
        config = self.config
        cut = dataclasses.replace(config, num_layers=count, windows=config.windows[:count])
        return assemble(cut, parameters(self), self.storage)

    def constrain(self, tree: Tree) -> Tree:
        """A tree of caches and of arrays whose first axis is the batch, said to lie where the model works on them."""
        layout = self.layout
        if layout is None:
            return tree

        def placed(x):
            return x.constrained() if hasattr(x, "constrained") else layout.rows(x)

        return jax.tree.map(placed, tree, is_leaf=lambda x: hasattr(x, "constrained"))

    def _rounded(self, x: jax.Array) -> jax.Array:
        """Hidden states in the dtype in which they are returned."""
        if x.dtype == self.dtype:
            return x
        kept = jnp.finfo(self.dtype)
        # Explicitly: XLA leaves out a conversion that another one takes back.
        return jax.lax.reduce_precision(x, kept.nexp, kept.nmant).astype(self.dtype)

    def _whole(self, x: jax.Array) -> jax.Array:
        """Hidden states, each on one device of every row of them."""
        return x if self.layout is None else self.layout.constrain(x, None)


def _head(key: jax.Array, config: TransformerConfig, storage: Storage) -> Linear | RankedHead | None:
    """What makes logits; None is the embedding."""
    vocab, hidden = config.vocab_size, config.hidden_size
    if storage.head_rows is not None:
        return RankedHead(key, hidden, vocab, storage, ranked_name(config.tied_head))
    if config.tied_head:
        return None
    return Linear(key, hidden, vocab, False, storage, storage.scheme("head.weight", hidden))


def parameters(model: Any) -> dict[str, jax.Array]:
    """The parameters by dotted name ("layers.0.attention.query.weight"), in a fixed order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(model)
    return {_dotted(path): leaf for path, leaf in flat}


def abstract(config: TransformerConfig, storage: Storage = Storage()) -> Transformer:  # noqa: B008 - frozen
    """The model with a `ShapeDtypeStruct` in place of each parameter: what a loader has to fill."""
    return jax.eval_shape(lambda: Transformer(config, jax.random.key(0), storage))


def assemble(config: TransformerConfig, values: dict[str, jax.Array], storage: Storage | None = None) -> Transformer:
    """A model of the given parameters, named as `parameters` names them; shapes are the caller's promise.

    So is that they are kept as `storage` says, and lie where it does. None is for
    matrices without bits of their own, of the dtype that the embedding has, on one device.
    """
    return fill(abstract(config, storage or Storage(values["embedding.table"].dtype)), values)


def fill(empty: Tree, values: dict[str, jax.Array]) -> Tree:
    """A module with the given parameters in place of its own, named as `parameters` names them."""
    flat, structure = jax.tree_util.tree_flatten_with_path(empty)
    return jax.tree_util.tree_unflatten(structure, [values[_dotted(path)] for path, _ in flat])


def _dotted(path) -> str:
    parts = [str(getattr(step, "name", getattr(step, "key", getattr(step, "idx", None)))) for step in path]
    return ".".join(parts[:-1] if parts[-1] == "value" else parts)  # an nnx.Param holds its array under "value"

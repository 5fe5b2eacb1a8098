"""Small models in the manner of three libraries: none knows of this package, and all write one position of a cache.

Each has greedy decoding of its own, over one row and one token a step.
"""

import dataclasses
import functools
import pathlib
import re
import types
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "pages" / "own_model.md"
VOCAB = 61
WIDTH, HEADS, DIM, LAYERS = 16, 2, 8, 2
SIZE = 64  # of their own caches
PROMPTS = [np.array([3, 1, 4]), np.array([5, 9, 2, 6, 5, 3, 5, 8, 9])]


@functools.cache
def recipes():
    """The functions that the page of adapters has, by name."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if "def from_" in block:
            exec(compile(block, PAGE.name, "exec"), names)
    return types.SimpleNamespace(**{name: x for name, x in names.items() if name.startswith("from_")})


def _attention(query, keys, values, mask):
    """query `[B, T, N, D]`, keys and values `[B, S, N, D]`, mask `[B, T, S]`."""
    scores = jnp.einsum("btnd,bsnd->bnts", query, keys) / np.float32(DIM**0.5)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, np.float32(-1e30)), axis=-1)
    return jnp.einsum("bnts,bsnd->btnd", weights, values)


def _rotated(x, positions):
    """x `[B, T, N, D]` at positions `[B, T]`."""
    angles = positions.astype(jnp.float32)[..., None, None] * np.float32([[[[1.0, 0.3, 0.1, 0.03]]]])
    first, second = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _heads(x):
    return x.reshape(*x.shape[:2], HEADS, DIM)


# In the manner of Tunix: an nnx module; a cache of dicts, whose `end_index` is one number a row, of which the first
# says where all rows write.


@dataclasses.dataclass(frozen=True)
class TunixConfig:
    num_layers: int = LAYERS
    num_kv_heads: int = HEADS
    head_dim: int = DIM


class TunixLike(nnx.Module):
    """With a window, all layers are local; `several` says how a call of more than one token makes their mask.

    "right" is by positions; "from zero" is that of a prompt, as if the first token stood at position 0; "alone" has
    several tokens see each other and nothing before.
    """

    def __init__(self, rngs, window=None, several="right"):
        linear = lambda size_in, size_out: nnx.Linear(size_in, size_out, use_bias=False, rngs=rngs)  # noqa: E731
        self.embedding = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.qkv = nnx.List([linear(WIDTH, 3 * HEADS * DIM) for _ in range(LAYERS)])
        self.out = nnx.List([linear(HEADS * DIM, WIDTH) for _ in range(LAYERS)])
        self.head = linear(WIDTH, VOCAB)
        self.config = TunixConfig()
        self.window = window
        self.several = several

    def init_cache(self, batch_size, cache_size):
        def layer():
            keys = jnp.zeros((batch_size, cache_size, HEADS, DIM))
            return {"k": keys, "v": keys, "end_index": jnp.zeros((batch_size,), jnp.int32)}

        return {f"layer_{i}": layer() for i in range(LAYERS)}

    def __call__(self, tokens, positions, cache, attention_mask):
        x = self.embedding(tokens)
        written = {}
        for i in range(LAYERS):
            layer = cache[f"layer_{i}"]
            query, key, value = map(_heads, jnp.split(self.qkv[i](x), 3, axis=-1))
            query, key = _rotated(query, positions), _rotated(key, positions)
            end, length = layer["end_index"], tokens.shape[1]
            keys = jax.lax.dynamic_update_slice(layer["k"], key, (0, end[0], 0, 0))
            values = jax.lax.dynamic_update_slice(layer["v"], value, (0, end[0], 0, 0))
            mask, slots = attention_mask, jnp.arange(keys.shape[1])[None, None]
            if self.window is not None:
                from_zero = self.several == "from zero" and length > 1
                first = jnp.arange(length)[None, :, None] if from_zero else positions[..., None]
                mask = mask & (slots > first - self.window) & (slots < first + self.window)
            if self.several == "alone" and length > 1:
                mask = mask & (slots >= end[0])
            x = x + self.out[i](_attention(query, keys, values, mask).reshape(*x.shape[:2], -1))
            written[f"layer_{i}"] = {"k": keys, "v": values, "end_index": end + length}
        return self.head(x) * np.float32(3), written


def tunix_like(seed=0, **options):
    return TunixLike(nnx.Rngs(seed), **options)


def tunix_greedy(model, prompt, steps):
    """The model's own greedy answer: int `[steps]`."""
    return _greedy(
        lambda tokens, at, cache, mask: model(tokens, at, cache, mask), model.init_cache(1, SIZE), prompt, steps
    )


# In the manner of google-deepmind/gemma: a linen module whose parameters and cache are passed to `apply`.


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    final_logit_softcap: float | None = None

    def init_cache(self, *, batch_size, dtype, cache_length):
        shape = (batch_size, cache_length, HEADS, DIM)
        return {
            f"layer_{i}": {
                "v": jnp.zeros(shape, dtype),
                "k": jnp.zeros(shape, dtype),
                "end_index": jnp.zeros((batch_size,), jnp.int32),
                "positions": jnp.zeros((batch_size, cache_length), jnp.int32),
            }
            for i in range(LAYERS)
        }


class Embedder(nn.Module):
    def setup(self):
        self.table = self.param("table", nn.initializers.normal(1.0), (VOCAB, WIDTH))
        self.sign = self.param("sign", nn.initializers.ones, ())

    def encode(self, tokens):
        return self.table[tokens]

    def decode(self, states):
        return states @ self.table.T * self.sign


@flax.struct.dataclass
class Output:
    logits: jax.Array
    cache: Any
    hidden_states: jax.Array | None


class GemmaLike(nn.Module):
    config: GemmaConfig = GemmaConfig()

    def setup(self):
        self.embedder = Embedder()
        self.qkv = [nn.Dense(3 * HEADS * DIM, use_bias=False) for _ in range(LAYERS)]
        self.out = [nn.Dense(WIDTH, use_bias=False) for _ in range(LAYERS)]

    def __call__(self, tokens, *, positions=None, cache=None, attention_mask=None, return_hidden_states=None):
        x, written = self.embedder.encode(tokens), {}
        for i in range(LAYERS):
            layer = cache[f"layer_{i}"]
            query, key, value = map(_heads, jnp.split(self.qkv[i](x), 3, axis=-1))
            query, key = _rotated(query, positions), _rotated(key, positions)
            at = layer["end_index"][0]
            keys = jax.lax.dynamic_update_slice(layer["k"], key, (0, at, 0, 0))
            values = jax.lax.dynamic_update_slice(layer["v"], value, (0, at, 0, 0))
            noted = jax.lax.dynamic_update_slice(layer["positions"], positions, (0, at))
            x = x + self.out[i](_attention(query, keys, values, attention_mask).reshape(*x.shape[:2], -1))
            end = layer["end_index"] + tokens.shape[1]
            written[f"layer_{i}"] = {"v": values, "k": keys, "end_index": end, "positions": noted}
        logits = self.embedder.decode(x)
        cap = self.config.final_logit_softcap
        logits = logits if cap is None else jnp.tanh(logits / np.float32(cap)) * np.float32(cap)
        return Output(logits, written, x if return_hidden_states else None)


def gemma_like(seed=0):
    """The module and its parameters."""
    module = GemmaLike(GemmaConfig(final_logit_softcap=20.0))
    cache = module.config.init_cache(batch_size=1, dtype=jnp.float32, cache_length=4)
    one, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 4), bool)
    made = module.init(jax.random.key(seed), one, cache=cache, positions=one, attention_mask=mask)
    return module, made["params"]


def gemma_greedy(module, params, prompt, steps):
    """The model's own greedy answer."""

    def call(tokens, positions, cache, mask):
        out = module.apply({"params": params}, tokens=tokens, cache=cache, positions=positions, attention_mask=mask)
        return out.logits, out.cache

    cache = module.config.init_cache(batch_size=1, dtype=jnp.float32, cache_length=SIZE)
    return _greedy(call, cache, prompt, steps)


# In the manner of bonsai: an nnx module that is given a cache of nnx variables, writes into it in place, and keeps one
# number for where all rows stand.


class BonsaiCache(nnx.Module):
    def __init__(self, batch, size):
        self.keys = nnx.Cache(jnp.zeros((batch, size, HEADS, DIM)))
        self.values = nnx.Cache(jnp.zeros((batch, size, HEADS, DIM)))
        self.size = size
        self.now = nnx.Cache(jnp.zeros((), jnp.int32))


class BonsaiLike(nnx.Module):
    def __init__(self, rngs):
        linear = lambda size_in, size_out: nnx.Linear(size_in, size_out, use_bias=False, rngs=rngs)  # noqa: E731
        self.embedding = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.qkv = nnx.List([linear(WIDTH, 3 * HEADS * DIM) for _ in range(LAYERS)])
        self.out = nnx.List([linear(HEADS * DIM, WIDTH) for _ in range(LAYERS)])
        self.head = linear(WIDTH, VOCAB)

    def __call__(self, tokens, cache):
        x, length = self.embedding(tokens), tokens.shape[1]
        for i in range(LAYERS):
            layer = cache[i]
            now = layer.now[...]
            positions = jnp.broadcast_to(now + jnp.arange(length)[None], tokens.shape)
            query, key, value = map(_heads, jnp.split(self.qkv[i](x), 3, axis=-1))
            query, key = _rotated(query, positions), _rotated(key, positions)
            layer.keys[...] = jax.lax.dynamic_update_slice(layer.keys[...], key, (0, now, 0, 0))
            layer.values[...] = jax.lax.dynamic_update_slice(layer.values[...], value, (0, now, 0, 0))
            mask = jnp.arange(layer.size)[None, None] <= positions[..., None]
            mixed = _attention(query, layer.keys[...], layer.values[...], mask)
            x = x + self.out[i](mixed.reshape(*x.shape[:2], -1))
            layer.now[...] = now + length
        return self.head(x) * np.float32(3)


def bonsai_like(seed=0):
    return BonsaiLike(nnx.Rngs(seed))


def run_bonsai(model, tokens, cache):
    return model(tokens, cache)


def new_bonsai_cache(slots):
    return nnx.List([BonsaiCache(1, slots) for _ in range(LAYERS)])


def bonsai_greedy(model, prompt, steps):
    cache, answer = new_bonsai_cache(SIZE), []
    for token in prompt[:-1]:
        model(jnp.asarray([[token]], jnp.int32), cache)
    token = prompt[-1]
    for _ in range(steps):
        token = int(jnp.argmax(model(jnp.asarray([[token]], jnp.int32), cache)[0, 0]))
        answer.append(token)
    return answer


def _greedy(call, cache, prompt, steps):
    answer, queue = [], [int(token) for token in prompt]
    for at in range(len(prompt) + steps - 1):
        positions = jnp.asarray([[at]], jnp.int32)
        mask = jnp.arange(SIZE)[None, None] <= positions[..., None]
        logits, cache = call(jnp.asarray([[queue[at]]], jnp.int32), positions, cache, mask)
        if at >= len(prompt) - 1:
            answer.append(int(jnp.argmax(logits[0, 0])))
            queue.append(answer[-1])
    return answer


# A ring: so many slots, of which a note says whose position each holds. It can take back as many tokens as it has slots
# more than its window.


class RingLike(nnx.Module):
    def __init__(self, rngs, window=8, spare=6):
        linear = lambda size_in, size_out: nnx.Linear(size_in, size_out, use_bias=False, rngs=rngs)  # noqa: E731
        self.embedding = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.qkv, self.out = linear(WIDTH, 3 * HEADS * DIM), linear(HEADS * DIM, WIDTH)
        self.head = linear(WIDTH, VOCAB)
        self.window, self.ring = window, window + spare

    def init_cache(self, slots):
        size = min(slots, self.ring)
        stored = jnp.zeros((1, size, HEADS, DIM))
        return {"k": stored, "v": stored, "holds": jnp.full((1, size), -1), "end": jnp.zeros((), jnp.int32)}

    @staticmethod
    def rewind(cache, n):
        return cache | {"holds": jnp.where(cache["holds"] < n, cache["holds"], -1), "end": n}

    def __call__(self, tokens, positions, cache, mask):
        x = self.embedding(tokens)
        query, key, value = map(_heads, jnp.split(self.qkv(x), 3, axis=-1))
        query, key = _rotated(query, positions), _rotated(key, positions)
        places = positions[0] % cache["k"].shape[1]
        keys, values = cache["k"].at[0, places].set(key[0]), cache["v"].at[0, places].set(value[0])
        holds = cache["holds"].at[0, places].set(positions[0])
        at, held = positions[..., None], holds[:, None]
        seen = (held >= 0) & (held <= at) & (held > at - self.window)
        x = x + self.out(_attention(query, keys, values, seen).reshape(*x.shape[:2], -1))
        return self.head(x) * np.float32(3), {"k": keys, "v": values, "holds": holds, "end": positions[0, -1] + 1}


def ring_like(seed=0, **options):
    return RingLike(nnx.Rngs(seed), **options)


def ring_greedy(model, prompt, steps):
    return _greedy(model, model.init_cache(SIZE), prompt, steps)

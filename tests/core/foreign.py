"""What somebody else would plug in, written against the protocols alone: a model, and an EAGLE-like head that drafts.

Nothing of `kljudge_jax` is imported here but names of its core and of its rules.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import kljudge_jax as kj
from kljudge_jax.core.sampling import draw, process_logits

VOCAB, SIZE = 23, 16


def weights(seed, shapes):
    """Random parameters by name; NumPy draws them, since JAX would compile an operation for every shape."""
    random = np.random.default_rng(seed)
    drawn = {name: random.standard_normal(shape, np.float32) / shape[0] ** 0.5 for name, shape in shapes.items()}
    return {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}


def attend(query, keys, values, positions):
    """`[T, H]` queries at int32 `[T]` positions over slots `[S, H]`, of which each sees those up to its own."""
    scores = query @ keys.T / query.shape[-1] ** 0.5
    seen = jnp.arange(keys.shape[0])[None] <= positions[:, None]
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1) @ values


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def clock(positions):
    """Where a token stands, f32 `[T, SIZE]`."""
    angles = positions.astype(jnp.float32)[:, None] * (0.9 ** jnp.arange(SIZE // 2, dtype=jnp.float32))[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@kj.register
@dataclasses.dataclass(frozen=True)
class Slots:
    """A cache: `stored` `[B, S, ...]` by position, and ONE scalar position a row, as a model of one sequence has it."""

    stored: Any
    length: jax.Array

    rollback: ClassVar[int | None] = None

    @classmethod
    def create(cls, batch, slots, *shapes):
        return cls(tuple(jnp.zeros((batch, slots, *shape)) for shape in shapes), jnp.zeros((batch,), jnp.int32))

    @property
    def slots(self):
        return jax.tree.leaves(self.stored)[0].shape[1]

    def at_length(self, length):
        return dataclasses.replace(self, length=jnp.asarray(length, jnp.int32))

    def resized(self, slots):
        def moved(x):
            return jnp.pad(x[:, :slots], [(0, 0), (0, max(0, slots - x.shape[1]))] + [(0, 0)] * (x.ndim - 2))

        return dataclasses.replace(self, stored=jax.tree.map(moved, self.stored))

    def take(self, row, slots):
        def one(x):
            return jax.lax.dynamic_slice_in_dim(x, row, 1, 0)

        return type(self)(jax.tree.map(lambda x: one(x)[:, :slots], self.stored), one(self.length))

    def put(self, row, other):
        return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, row, 0), self, other)

    def follow(self, source, start, count):
        def copied(x):
            at = start[:, None] + jnp.arange(count)[None]
            rows = jnp.arange(x.shape[0])[:, None]
            return x.at[rows, at].set(x[source[:, None], at], mode="drop")

        return dataclasses.replace(self, stored=jax.tree.map(copied, self.stored))


@kj.register
@dataclasses.dataclass(frozen=True)
class Scalar:
    """A decoder of ONE sequence whose cache has ONE scalar position, mapped over rows by itself; a `Model`."""

    parameters: dict[str, jax.Array]

    num_layers: ClassVar[int] = 2
    max_length: ClassVar[int | None] = None

    @classmethod
    def random(cls, seed, vocab=VOCAB, sharpness=4.0):
        shapes = {"embedding": (vocab, SIZE), "head": (SIZE, vocab)}
        for i in range(cls.num_layers):
            shapes |= {f"{name}{i}": (SIZE, SIZE) for name in ("query", "key", "value", "up", "down")}
        drawn = weights(seed, shapes)
        return cls(drawn | {"embedding": drawn["embedding"] * vocab**0.5, "head": drawn["head"] * sharpness})

    def noisy(self, seed, noise):
        """A model that agrees with this one at times."""
        random = np.random.default_rng(seed)
        return Scalar({
            name: x + noise * np.float32(x.std()) * random.standard_normal(x.shape, np.float32)
            for name, x in self.parameters.items()
        })  # fmt: skip

    @property
    def vocab_size(self):
        return self.parameters["embedding"].shape[0]

    def init_cache(self, batch, slots):
        return Slots.create(batch, slots, *[(SIZE,)] * 2 * self.num_layers)

    def one(self, tokens, stored, position):
        """`[T]` tokens of one sequence from int32 `[]` position on: all residual streams, and what is stored."""
        p, new = self.parameters, []
        positions = position + jnp.arange(tokens.shape[0])
        streams = [p["embedding"][tokens] + clock(positions)]
        for i in range(self.num_layers):
            x, layer = streams[-1], stored[2 * i : 2 * i + 2]
            fresh = (norm(x) @ p[f"{name}{i}"] for name in ("key", "value"))
            keys, values = (
                jax.lax.dynamic_update_slice(old, rows, (position, 0)) for old, rows in zip(layer, fresh, strict=True)
            )
            new += [keys, values]
            x = x + attend(norm(x) @ p[f"query{i}"], keys, values, positions)
            streams.append(x + jax.nn.relu(norm(x) @ p[f"up{i}"]) @ p[f"down{i}"])
        return tuple(streams), tuple(new)

    def __call__(self, tokens, cache, *, layers=()):
        streams, stored = jax.vmap(self.one)(tokens, cache.stored, cache.length)
        hidden = norm(streams[-1])
        features = kj.core.Features(hidden, tuple(streams[i] for i in layers))
        return features, Slots(stored, cache.length + tokens.shape[1])

    def logits(self, hidden):
        return hidden @ self.parameters["head"]


@dataclasses.dataclass(frozen=True)
class Head:
    """An EAGLE-like head: one layer over (what the target saw at t, token t + 1), which goes on by its own outputs.

    It remembers keys and values of its own, one slot a position of the target, and its output at the last position.
    `models.draft` holds its parameters.
    """

    layers: tuple[int, ...] = (1, 2)

    has_hidden: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    def parameters(self, seed, embedding, head):
        """Random ones, around the target's own embedding `[V, SIZE]` and head `[SIZE, V]`, as in EAGLE."""
        shapes = {"fuse": (SIZE * len(self.layers), SIZE), "seen": (SIZE, SIZE)}
        drawn = weights(seed, shapes | {name: (SIZE, SIZE) for name in ("query", "key", "value")})
        return drawn | {"embedding": embedding, "head": head}

    def init(self, models, batch, slots):
        return {"cache": Slots.create(batch, slots, (SIZE,), (SIZE,)), "output": jnp.zeros((batch, SIZE))}

    def observe(self, models, state, window):
        p = models.draft
        seen = norm(jnp.concatenate(window.features.layers, axis=-1)) @ p["fuse"]
        outputs, cache = self._run(p, seen, window.next_tokens, state["cache"].at_length(window.start))
        last = jnp.maximum(window.valid - 1, 0)[:, None, None]
        output = jnp.take_along_axis(outputs, last, axis=1)[:, 0]
        # Nothing that is not valid may leave a trace.
        told = window.valid > 0
        length = jnp.where(told, window.start + window.valid, state["cache"].length)
        return {"cache": cache.at_length(length), "output": jnp.where(told[:, None], output, state["output"])}

    def propose(self, models, target_cache, state, context, request):
        p, sampling = models.draft, context.sampling

        def step(carry, i):
            cache, output = carry
            raw = output @ p["head"]
            processed = process_logits(raw, sampling)
            keys = jax.vmap(jax.random.fold_in, (0, None))(context.keys, i)
            token = jax.vmap(draw, (0, 0, None))(keys, processed, sampling)
            outputs, cache = self._run(p, output[:, None], token[:, None], cache)
            return (cache, outputs[:, 0]), (token, raw, processed, outputs[:, 0])

        _, drawn = jax.lax.scan(step, (state["cache"], state["output"]), jnp.arange(request.draft_length))
        tokens, raw, processed, hidden = (x.swapaxes(0, 1) for x in drawn)
        count = jnp.full_like(context.consumed, request.draft_length)
        draft = kj.core.Draft(
            tokens, count, None if sampling.greedy else processed, raw, hidden if request.with_hidden else None
        )
        # What the rollout wrote is stale: the target's own features take its place when the head is told of them.
        return draft, target_cache, state

    def _run(self, p, seen, tokens, cache):
        """`[B, T, SIZE]` and int32 `[B, T]` after what the cache holds."""

        def one(seen, tokens, keys, values, position):
            x = 2 * norm(p["embedding"][tokens]) + norm(seen) @ p["seen"]
            positions = position + jnp.arange(tokens.shape[0])
            keys = jax.lax.dynamic_update_slice(keys, x @ p["key"], (position, 0))
            values = jax.lax.dynamic_update_slice(values, x @ p["value"], (position, 0))
            return norm(x + attend(x @ p["query"], keys, values, positions)), (keys, values)

        outputs, stored = jax.vmap(one)(seen, tokens, *cache.stored, cache.length)
        return outputs, Slots(stored, cache.length + tokens.shape[1])


@dataclasses.dataclass(frozen=True)
class Diary:
    """A drafter that drafts as `inner` does, and writes down all that it is told of the answer, by position.

    What is not valid is not written. Its pages are as many as `room`, whatever the slots.
    """

    inner: Any = Head()
    room: int = 48
    size: int = SIZE

    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    @property
    def layers(self):
        return self.inner.layers

    def init(self, models, batch, slots):
        shape = (batch, self.room)
        diary = {
            "times": jnp.zeros(shape, jnp.int32),
            "prompt": jnp.zeros(shape, jnp.int32),
            "token": jnp.zeros(shape, jnp.int32),
            "next": jnp.zeros(shape, jnp.int32),
            "features": jnp.zeros((*shape, self.size * len(self.layers))),
        }
        return {"inner": self.inner.init(models, batch, slots), "diary": diary}

    def observe(self, models, state, window):
        length = window.tokens.shape[1]
        at = window.start[:, None] + jnp.arange(length)[None]
        at = jnp.where(jnp.arange(length)[None] < window.valid[:, None], at, self.room)
        rows = jnp.arange(at.shape[0])[:, None]
        said = {
            "prompt": jnp.full_like(at, int(window.prompt)),
            "token": window.tokens,
            "next": window.next_tokens,
            "features": jnp.concatenate(window.features.layers, axis=-1),
        }
        diary = {name: state["diary"][name].at[rows, at].set(value, mode="drop") for name, value in said.items()}
        diary["times"] = state["diary"]["times"].at[rows, at].add(1, mode="drop")
        return {"inner": self.inner.observe(models, state["inner"], window), "diary": diary}

    def propose(self, models, target_cache, state, context, request):
        draft, cache, inner = self.inner.propose(models, target_cache, state["inner"], context, request)
        return draft, cache, state | {"inner": inner}


def teacher_forced(model, tokens, layers=()):
    """Logits `[T, V]`, and the streams of `layers` `[T, n H]`, of a whole sequence in one pass, padded to 64."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    logits, streams = _forced(model, jnp.asarray(padded), layers)
    return np.asarray(logits)[0, : len(tokens)], np.asarray(streams)[0, : len(tokens)]


@functools.partial(jax.jit, static_argnums=2)
def _forced(model, tokens, layers):
    features, _ = model(tokens, model.init_cache(1, 64), **({"layers": layers} if layers else {}))
    return model.logits(features.hidden), jnp.concatenate(features.layers or (features.hidden,), axis=-1)


def greedy_by_hand(model, prompt, steps):
    """The model's own greedy answer, the whole sequence again for every token."""
    sequence = list(prompt)
    for _ in range(steps):
        sequence.append(int(teacher_forced(model, sequence)[0][-1].argmax()))
    return sequence[len(prompt) :]


def padded(prompts, width=None):
    """Prompts int32 `[B, P]` and lengths `[B]`, as the core takes them."""
    rows = np.zeros((len(prompts), width or max(map(len, prompts))), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(rows), jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)


def keys(count, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def rows_of(result):
    """The tokens of a `kj.core.Result`, as lists."""
    return [row[:count].tolist() for row, count in zip(np.asarray(result.tokens), result.count, strict=True)]


@kj.register
@dataclasses.dataclass(frozen=True)
class PerShard(Scalar):
    """The same without a map over rows: of a batch of one, such as a shard has, the cache's position is a scalar."""

    def __call__(self, tokens, cache, *, layers=()):
        streams, stored = self.one(tokens[0], tuple(x[0] for x in cache.stored), cache.length[0])
        streams, stored = jax.tree.map(lambda x: x[None], (streams, stored))
        features = kj.core.Features(norm(streams[-1]), tuple(streams[i] for i in layers))
        return features, Slots(stored, cache.length + tokens.shape[1])


@functools.partial(jax.jit, static_argnames=("drafter", "shape"))
def begin(models, rule, prompts, lengths, keys, numbers, *, drafter, shape):
    return kj.core.init(models, drafter, rule, prompts, lengths, keys, numbers, shape=shape)


@functools.partial(jax.jit, static_argnames=("drafter", "shape"))
def go_on(models, rule, state, numbers, max_cycles=None, *, drafter, shape):
    return kj.core.decode(models, drafter, rule, state, numbers, shape=shape, max_cycles=max_cycles)


@functools.partial(jax.jit, static_argnames=("drafter", "shape"))
def enter(models, rule, state, entries, numbers, count, *, drafter, shape):
    return kj.core.admit(models, drafter, rule, state, entries, numbers, shape=shape, count=count)

"""What a pass reads and computes, and what this device was just measured to reach: a floor under every time."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench.timing import Probe, Timing
from kljudge_jax.generation.costs import bytes_read
from kljudge_jax.kernels.place import default_platform
from kljudge_jax.models import eagle3
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.eagle3 import Eagle3Head
from kljudge_jax.models.leaves import arrays, parameter_bytes
from kljudge_jax.models.shapes import count_parameters
from kljudge_jax.models.transformer import Transformer, parameters


@dataclasses.dataclass(frozen=True)
class Work:
    """Bytes read and floating-point operations of something."""

    bytes: int
    flops: int

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def times(self, n: int) -> Work:
        return Work(n * self.bytes, n * self.flops)


@dataclasses.dataclass(frozen=True)
class Reached:
    """What the device reached: bytes and floating-point operations per second."""

    bytes_per_second: float
    flops_per_second: float

    def floor(self, work: Work) -> float:
        """The least seconds that work can take, whichever of the two is slower (the roofline)."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def pass_work(model: Transformer, batch: int, positions: int, slots: int) -> Work:
    """A pass over `positions` tokens of each of `batch` rows, logits included.

    Every weight is read once, and so many slots of the cache for each row: `slots_read` says how many those are.
    """
    config = model.config
    table = config.vocab_size * config.hidden_size
    weights = count_parameters(config) - (0 if config.tied_head else table)
    if model.storage.head_rows is not None:
        weights += model.storage.head_rows * config.hidden_size - table
    cache = cache_bytes(config, batch, slots, model.dtype)
    attention = 4 * config.num_layers * batch * positions * config.num_heads * slots * config.head_dim
    return Work(bytes_read(model) + cache, 2 * weights * batch * positions + attention)


def head_draft_work(head: Eagle3Head, batch: int, length: int, slots: int) -> Work:
    """A draft of `length` tokens of each of `batch` rows by a head: its output rows for each token, and its layer, with
    so many slots of its cache, between two."""
    rows = Work(parameter_bytes(head.head), 2 * batch * math.prod(head.head.shape))
    return rows.times(length) + _layer_work(head, batch, 1, slots).times(length - 1)


def head_observe_work(head: Eagle3Head, batch: int, positions: int, slots: int) -> Work:
    """What a head does with the target's states at `positions` of each row: they are joined, and go through its layer.

    It writes so many of the slots that are counted.
    """
    joined = Work(parameter_bytes(head.fc), 2 * batch * positions * math.prod(head.fc.shape))
    return joined + _layer_work(head, batch, positions, slots)


def _layer_work(head: Eagle3Head, batch: int, positions: int, slots: int) -> Work:
    """A pass through the layer of a head."""
    config = head.config.decoder
    named = parameters(eagle3.abstract(head.config))
    weights = sum(math.prod(leaf.shape) for name, leaf in named.items() if name.startswith("layers."))
    attention = 4 * batch * positions * config.num_heads * slots * config.head_dim
    cache = cache_bytes(config, batch, slots, head.dtype)
    return Work(parameter_bytes(head.layers) + cache, 2 * weights * batch * positions + attention)


def slots_read(model: Transformer | Eagle3Head, lengths: np.ndarray, positions: int, capacity: int) -> int:
    """How many of a cache's `capacity` slots a pass over `positions` tokens after `lengths` int `[B]` reads a row.

    Where a kernel attends, those that are written, on average over the rows; else all of them, since XLA masks the
    empty ones and does not skip them.
    """
    cache = jax.eval_shape(lambda: model.init_cache(1, capacity))
    return capacity if cache.reads_all else int(np.mean(lengths)) + positions


def cache_bytes(config: TransformerConfig, batch: int, capacity: int, dtype: Any) -> int:
    """What the keys and values of a cache take."""
    shapes = jax.eval_shape(lambda: KVCache.create(config, batch, capacity, dtype))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1)


def verdict_work(vocab_size: int, batch: int, draft_length: int) -> Work:
    """The least that verdicts read: both models' logits once."""
    return Work(4 * batch * vocab_size * (2 * draft_length + 1), 0)


def commit_work(batch: int, draft_length: int) -> Work:
    """The least that a commit moves: a verdict's tokens read and written, an origin each, and two counts of the cycle.

    The caches are rolled back by a number. What it takes is what its small kernels take, far above this.
    """
    token, origin = 4, 1
    return Work(batch * ((draft_length + 1) * (2 * token + origin) + 2 * token), 0)


def empty_call() -> Probe:
    """A call of a compiled function that does nothing, waited for: the least that a block of cycles costs."""
    return Probe(lambda _, n: [jax.block_until_ready(_empty(np.int32(0))) for _ in range(n)])


def weight_bytes(model: Any) -> int:
    """Bytes that `read` reads."""
    return sum(leaf.nbytes for leaf in _matrices(model))


def read(model: Any, axis: int) -> Probe:
    """A plain read of all matrices of a model: their sums along an axis."""
    matrices = [_in_words(leaf) for leaf in _matrices(model)]
    return Probe(lambda _, n: _read(matrices, np.int32(n), axis=axis))


def _matrices(model: Any) -> list[jax.Array]:
    found = [leaf for leaf in arrays(model) if leaf.ndim > 1 and leaf.size]  # tiled weights have 4 axes
    if not found:
        raise InputError(
            f"a bench reads the parameters of a model, and the leaves of this {type(model).__name__} hold no matrix: "
            "keep its parameters in its leaves (`params` of kljudge_jax.adapt), not in its functions"
        )
    return found


def _in_words(leaf: jax.Array) -> jax.Array:
    """The same bytes as float32, whatever that comes to, where they are tiles or their scales: XLA takes longer to
    widen smaller numbers, or to add integers, than to read them. Tiles lie in the memory of the host."""
    if leaf.ndim == 2:
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.nbytes // len(leaf) % 4:
        return jnp.reshape(leaf, (len(leaf), -1))
    return jnp.asarray(np.asarray(leaf).reshape(len(leaf), -1).view(np.float32))


def matmul_size() -> int:
    """n of the square product that is timed."""
    return 1024 if default_platform() == "cpu" else 8192


def matmul(dtype) -> Probe:
    """A square product in that dtype, accumulated in float32 as the models' own are."""
    n = matmul_size()
    square = jnp.full((n, n), 1 / n, dtype)
    return Probe(lambda _, repetitions: _matmul(square, np.int32(repetitions)))


def reached(read_bytes: int, reads: list[Timing], product: Timing) -> Reached:
    """The best of several ways to read, and the product."""
    return Reached(read_bytes / min(t.seconds for t in reads), 2 * math.pow(matmul_size(), 3) / product.seconds)


@jax.jit
def _empty(x):
    return x + 1


@functools.partial(jax.jit, static_argnames="axis")
def _read(matrices, repetitions, *, axis):
    def turn(i, total):
        fenced, _ = jax.lax.optimization_barrier((matrices, i))
        return total + sum(jnp.sum(jnp.sum(m, axis=axis, dtype=jnp.float32)) for m in fenced)

    return jax.lax.fori_loop(0, repetitions, turn, jnp.float32(0))


@jax.jit
def _matmul(square, repetitions):
    def turn(_, x):
        return jnp.dot(x, square, preferred_element_type=jnp.float32).astype(x.dtype)

    return jax.lax.fori_loop(0, repetitions, turn, square)

"""Attention of new tokens over a cache, on a GPU: only what was written is read.

XLA's einsum reads every slot of a cache, and writes a score for each. This kernel, in Pallas's Triton dialect, loops
over the blocks of slots that some query can see, which a row's length says at run time, and keeps the softmax of
FlashAttention-2 as it goes. Few rows and kv heads would leave most of a GPU idle: the blocks of each are then dealt out
to several programs in turn, so that a short sequence is shared as evenly as a long one, and XLA merges what they found.

JAX has two that come near. `decode_attention` of its Pallas operations adds its mask to the scores, so that NaN in a
slot that no query sees would reach them all; it takes one query position, and splits slots, and not what is written of
them. cuDNN's, by `jax.nn.dot_product_attention`, wants slots before heads, counts causality from a cache's first slot,
and cannot be traced where cuDNN is not installed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.kernels.written_blocks import kernel_name
from kljudge_jax.varying import result_like, varying_as

# Finite: the softmax of a program that saw nothing of a row is wiped out by those that saw some, and is no NaN.
_MASKED = -1e30

# Slots that a step of the kernel reads, and query rows of one program: tiles of a size that Triton's products take.
_SLOTS = 64
_FEWEST_ROWS, _MOST_ROWS = 16, 128

# Head dimensions that are such tiles; past 128 tiles have fewer slots and rows, for shared memory. They then take
# 70 kB at most on an RTX 30 or 40, an L4 or an A100, and 98 kB on an H100: the least has 99.
_DIMS = (16, 32, 64, 128, 256)
_WIDE = 128

# What Triton's tensor core products, and bfloat16, take.
_LEAST_CAPABILITY = 8.0

# Programs that keep all multiprocessors of a large GPU busy: an H100 has 132.
_PROGRAMS = 128

# Bytes of a layer's keys and values from which on the kernel pays: a layer of a model of 8B has 436 MB of weights, of
# one of 1B 122 MB, beside which less than this is not felt, whatever is read of it.
_LEAST_BYTES = 2 << 20


def reads_written(platform: str, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether `written_attention` can be called there, for keys of that dtype and shape `[B, G, S, D]`.

    Not in float32, whose products Triton rounds to TF32: XLA's keep what is promised of them.
    """
    return platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16) and _fits_tiles(shape) and _is_recent()


@functools.cache
def _is_recent() -> bool:
    """Whether the GPUs of this process, if it has any, are of NVIDIA and recent enough; those that are not here are."""
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:
        return True
    try:
        return all(float(device.compute_capability) >= _LEAST_CAPABILITY for device in devices)
    except ValueError:  # AMD's have names
        return False


def _fits_tiles(shape: tuple[int, ...]) -> bool:
    return shape[2] % _SLOTS == 0 and shape[3] in _DIMS


def pays(shape: tuple[int, ...]) -> bool:
    """Whether it should, for keys `[B, G, S, D]` of 16 bits on one device, rather than XLA's einsum."""
    return _fits_tiles(shape) and 2 * 2 * math.prod(shape) >= _LEAST_BYTES


def written_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    start: jax.Array,
    *,
    window: int = 0,
    softcap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """What each query reads of the values at its own slot and before. Scores and softmax are float32.

    Slots from `start[b] + T` on are not read, whatever is in them.

    Args:
      query: `[B, G, T, R, D]`, scaled; R query heads share a kv head. Query t of row b stands at slot `start[b] + t`.
      keys, values: `[B, G, S, D]`, in 16 bits, the new tokens written; S is a multiple of 64, and D a power of two.
      start: int32 `[B]`.
      window: how many slots a query sees, its own included; 0 is all.
      softcap: scores are squeezed to this size; 0 is off.
      interpret: runs it without a GPU, operation by operation.

    Returns:
      f32 `[B, G, T, R, D]`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    batch, groups, time, share, dim = query.shape
    slots, rows = keys.shape[2], time * share
    narrower = max(1, dim // _WIDE)
    block = _SLOTS // narrower
    tile = min(_MOST_ROWS // narrower, max(_FEWEST_ROWS, 1 << (rows - 1).bit_length()))
    tiles = -(-rows // tile)
    splits = _splits(batch * groups * tiles, slots // block)
    query = query.astype(keys.dtype)
    keys, values, start = varying_as((keys, values, start), query)
    fixed = {"time": time, "share": share, "block": block, "splits": splits, "window": window, "softcap": softcap}

    def of_head(*sizes):
        return pl.BlockSpec((None, None, *sizes), lambda head, i, _: (head // groups, head % groups, i, 0))

    def whole(*sizes):
        return pl.BlockSpec((None, None, *sizes), lambda head, *_: (head // groups, head % groups, 0, 0))

    def found(*sizes):
        return pl.BlockSpec(
            (None, None, None, *sizes),
            lambda head, i, part: (part, head // groups, head % groups, i, *([0] * (len(sizes) - 1))),
        )

    def result(*sizes):
        return result_like(query, (splits, batch, groups, *sizes), jnp.float32)

    mixed, highest, total = pl.pallas_call(
        functools.partial(_kernel, **fixed),
        grid=(batch * groups, tiles, splits),
        in_specs=[
            pl.BlockSpec((None,), lambda head, *_: (head // groups,)),
            of_head(tile, dim),
            whole(slots, dim),
            whole(slots, dim),
        ],
        out_specs=[found(tile, dim), found(tile), found(tile)],
        out_shape=[result(rows, dim), result(rows), result(rows)],
        compiler_params=triton.CompilerParams(num_warps=8 if tile > 64 else 4, num_stages=2),
        interpret=interpret,
        name=kernel_name(block, slots, time, window),
    )(start, query.reshape(batch, groups, rows, dim), keys, values)
    # Apart from what is made of it, as in JAX's own kernel: fused with it, XLA has made NaN of it (b/389925439).
    top = jax.lax.optimization_barrier(jnp.max(highest, axis=0, keepdims=True))
    weight = jnp.exp(highest - top)
    mixed = jnp.sum(mixed * weight[..., None], axis=0) / jnp.sum(total * weight, axis=0)[..., None]
    return mixed.reshape(query.shape)


def _splits(programs: int, blocks: int) -> int:
    """Over how many programs to deal out the blocks of slots of each, a power of two."""
    most = min(_PROGRAMS // programs, blocks)
    return 1 << (max(1, most).bit_length() - 1)


def _kernel(start_ref, query_ref, keys_ref, values_ref, *found_refs, time, share, block, splits, window, softcap):
    """A tile of the query rows of one kv head, over every `splits`-th block of slots."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    dot = getattr(triton, "dot", None) or pl.dot  # jax 0.8 has it there
    tile, dim = query_ref.shape
    start = start_ref[...]
    before = pl.program_id(1) * tile
    row = before + jnp.arange(tile)
    real = row < time * share
    position = start + jnp.minimum(row // share, time - 1)
    # The tile's queries see no slot before `first`, and none from `end` on.
    end = start + jnp.minimum((before + tile - 1) // share, time - 1) + 1
    first = jnp.maximum(start + before // share - window + 1, 0) // block if window else 0
    first = first + pl.program_id(2)
    query = triton.load(query_ref, mask=real[:, None], other=0.0)

    def step(i, carry):
        mixed, highest, total = carry
        at = (first + i * splits) * block
        slot = at + jnp.arange(block)
        written = (slot < end)[:, None]
        keys = triton.load(keys_ref.at[pl.ds(at, block), :], mask=written, other=0.0)
        scores = dot(query, keys.T)
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        visible = slot[None] <= position[:, None]
        if window:
            visible &= slot[None] > position[:, None] - window
        scores = jnp.where(visible, scores, _MASKED)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        kept, weights = jnp.exp(highest - higher), jnp.exp(scores - higher[:, None])
        values = triton.load(values_ref.at[pl.ds(at, block), :], mask=written, other=0.0)
        mixed = mixed * kept[:, None] + dot(weights.astype(values.dtype), values)
        return mixed, higher, total * kept + jnp.sum(weights, axis=1)

    nothing = (
        jnp.zeros((tile, dim), jnp.float32),
        jnp.full((tile,), _MASKED, jnp.float32),
        jnp.zeros((tile,), jnp.float32),
    )
    steps = jnp.maximum(pl.cdiv(pl.cdiv(end, block) - first, splits), 0)
    for ref, found in zip(found_refs, jax.lax.fori_loop(0, steps, step, nothing), strict=True):
        triton.store(ref, found, mask=real[:, None] if found.ndim > 1 else real)

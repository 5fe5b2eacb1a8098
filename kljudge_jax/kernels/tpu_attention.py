"""Attention of new tokens over a cache, on a TPU: of each row only the blocks of slots that were written are read.

One Pallas kernel takes a list of blocks, row after row, whose length is known when it runs. So it takes as many steps
as blocks were written: rows of several lengths cost what each of them holds. XLA's own product reads every slot there
is, and a loop of products over blocks reads of every row as much as of the longest: 281,000 estimated cycles for nine
turns of 256 slots (8 rows of 9 queries, 8 and 2 heads of 128) where the product over all 8,192 slots takes 153,700.

The kernels that ship with JAX 0.10.2 do not serve. Ragged paged attention takes several queries a row and rows of any
length, but no head dimension of 64 and no three kv heads; its mask is added to scores, so that a key that is no number
reaches the queries before it; and it asks the process's device what to compile for, so that nothing with it
compiles for chips that are not here. Paged attention takes one query a row, and splash attention knows no lengths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kljudge_jax.kernels.written_blocks import kernel_name
from kljudge_jax.varying import result_like, varying_as

# Finite, so that a query that sees nothing in a block has no weight there and no NaN.
_MASKED = -1e30

# Numbers side by side in a TPU's memory: XLA puts slots there where a head has fewer.
LANES = 128

# A row is at least so many blocks: a row a quarter full then reads at most an eighth more than it holds.
_BLOCKS = 32

# A step takes about a third of a microsecond whatever it reads, in which a v5e reads 0.3 MB.
_LARGEST_BLOCK = 1024

# The fewest slots of a row for which a block has all lanes. Shorter caches are read whole, and grow by doubling.
FEWEST_SLOTS = _BLOCKS * LANES

# Of a core's 16 MB of scoped VMEM, for the blocks of one step, twice where they are on their way, and its states.
_VMEM = 10 << 20


class Blocks(NamedTuple):
    """How a kernel takes a cache: slots of a block, and kv heads of a step."""

    slots: int
    heads: int


def takes(query: jax.ShapeDtypeStruct | jax.Array, keys: jax.ShapeDtypeStruct | jax.Array) -> Blocks | None:
    """The blocks for queries `[B, G, N/G, T, D]` and keys `[B, G, S, D]` on one device; None where XLA reads all.

    A row has at least `_BLOCKS` blocks, and what one step holds fits in VMEM.
    """
    (_, groups, slots, dim), (_, _, share, length, _) = keys.shape, query.shape
    if slots < FEWEST_SLOTS:
        return None
    block = LANES
    while 2 * block * _BLOCKS <= slots and block < _LARGEST_BLOCK:
        block *= 2
    # What one kv head takes of VMEM, in bytes: keys and values, queries and results twice; states and scores once.
    rows, lanes = share * length, -(-dim // LANES) * LANES
    size = jnp.dtype(keys.dtype).itemsize
    most = [heads for heads in range(1, groups + 1) if groups % heads == 0]
    while block >= LANES:
        states = rows * (4 * lanes + 2 * 4 * LANES) + 2 * 2 * rows * lanes * jnp.dtype(query.dtype).itemsize
        each = 2 * 2 * block * lanes * size + states
        scores = 4 * 4 * max(rows, 8) * block + 2 * 4 * block * lanes
        fit = [heads for heads in most if heads * each + scores <= _VMEM]
        if fit:
            return Blocks(block, fit[-1])
        block //= 2
    return None


def written_attention(
    query: jax.Array,
    start: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
    *,
    blocks: Blocks,
    window: int,
    softcap: float,
    interpret: Any = False,
) -> jax.Array:
    """What each query reads of the values that it can see, of a cache that holds the new tokens already.

    Scores and softmax are float32, as are products of float32; those of 16 bits round the weights of a block to the
    values' dtype. A slot that no query can see is not read, or its value is finite: its score is never used.

    Args:
      query: `[B, G, N/G, T, D]`, scaled.
      start: int32 `[B]`, the slot of each row's first query; a query sees all slots up to its own.
      keys, values: `[B, G, S, D]`.
      key_scale, value_scale: f32 `[B, G, S]`, what keys and values are to be multiplied by; None is 1.
      blocks: as `takes` gives them.
      window: how many slots a query sees, its own included; 0 is all.
      softcap: scores are squeezed to this size; 0 is off.
      interpret: as `pallas_call` has it.

    Returns:
      `[B, G, N/G, T, D]`, of the queries' dtype.
    """
    batch, groups, share, length, dim = query.shape
    slots, (block, heads) = keys.shape[2], blocks
    rows, in_row = share * length, pl.cdiv(slots, block)
    turned = dim < LANES
    if turned:
        # Slots are the lanes of such a cache: said so, nothing has to move.
        keys, values = keys.swapaxes(2, 3), values.swapaxes(2, 3)
    steps, count = _written_blocks(start, length, block, in_row, window)

    def row_of(steps, i):
        return jax.lax.div(steps[i], jnp.int32(in_row))

    def block_of(steps, i):
        return jax.lax.rem(steps[i], jnp.int32(in_row))

    def of_row(group, i, steps, start):
        return row_of(steps, i), group, 0, 0

    def of_slots(group, i, steps, start):
        return row_of(steps, i), group, block_of(steps, i), 0

    def of_lanes(group, i, steps, start):
        return row_of(steps, i), group, 0, block_of(steps, i)

    def kernel(steps, start, query, keys, values, *rest):
        scales, (out, most, total, mixed) = rest[:-4], rest[-4:]
        i, last = pl.program_id(1), pl.num_programs(1) - 1
        row, at = row_of(steps, i), block_of(steps, i)
        begins = (i == 0) | (row_of(steps, jnp.maximum(i - 1, 0)) != row)
        ends = (i == last) | (row_of(steps, jnp.minimum(i + 1, last)) != row)

        @pl.when(begins)
        def _():
            most[...] = jnp.full(most.shape, -jnp.inf, jnp.float32)
            total[...] = jnp.zeros(total.shape, jnp.float32)
            mixed[...] = jnp.zeros(mixed.shape, jnp.float32)

        # Row r T + t of the queries stands at position start + t.
        own = start[row] + jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, (rows, block), 0), jnp.int32(length))
        distance = own - (at * block + jax.lax.broadcasted_iota(jnp.int32, (rows, block), 1))
        visible = distance >= 0
        if window:
            visible &= distance < window
        for head in range(heads):
            key, value = keys[0, head].astype(query.dtype), values[0, head].astype(query.dtype)
            if slots % block:  # what lies past a row's end is no number of ours
                slot = at * block + jax.lax.broadcasted_iota(jnp.int32, value.shape, 1 if turned else 0)
                value = jnp.where(slot < slots, value, jnp.zeros((), value.dtype))
            scores = _product(query[0, head], key, transposed=not turned)
            if scales:
                scores = scores * scales[0][0, head]
            scores = softcap * jnp.tanh(scores / softcap) if softcap else scores
            scores = jnp.where(visible, scores, _MASKED)
            before = most[head]
            now = jnp.maximum(before, jnp.max(scores, axis=-1, keepdims=True))
            weights, kept = jnp.exp(scores - now), jnp.exp(before - now)
            most[head] = now
            total[head] = kept * total[head] + jnp.sum(weights, axis=-1, keepdims=True)
            if scales:
                scale = scales[1][0, head]
                if slots % block:
                    slot = at * block + jax.lax.broadcasted_iota(jnp.int32, scale.shape, 1)
                    scale = jnp.where(slot < slots, scale, 0.0)
                weights = weights * scale
            mixed[head] = kept * mixed[head] + _product(weights.astype(value.dtype), value, transposed=turned)

        @pl.when(ends)
        def _():
            out[0] = (mixed[...] / total[...]).astype(out.dtype)

    queries = pl.BlockSpec((1, heads, rows, dim), of_row)
    side = pl.BlockSpec((1, heads, dim, block), of_lanes) if turned else pl.BlockSpec((1, heads, block, dim), of_slots)
    scales = [] if key_scale is None or value_scale is None else [key_scale[:, :, None], value_scale[:, :, None]]
    given = [query.reshape(batch, groups, rows, dim), keys, values, *scales]
    if not interpret:
        # XLA would bring a whole cache of a few megabytes into VMEM, and back, to have blocks of it there.
        given[1:] = [pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in given[1:]]
    steps, start, given[1:] = varying_as((steps, start, given[1:]), query)
    out = pl.pallas_call(
        kernel,
        result_like(query, given[0].shape, query.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(groups // heads, count),
            in_specs=[queries, side, side, *[pl.BlockSpec((1, heads, 1, block), of_lanes) for _ in scales]],
            out_specs=queries,
            scratch_shapes=[
                pltpu.VMEM((heads, rows, 1), jnp.float32),
                pltpu.VMEM((heads, rows, 1), jnp.float32),
                pltpu.VMEM((heads, rows, dim), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        # Which blocks it reads is known when it runs: who reads the compiled program works it out of its name.
        name=kernel_name(block, slots, length, window),
        interpret=interpret,
    )(steps, start, *given)
    return out.reshape(query.shape)


def _product(left: jax.Array, right: jax.Array, transposed: bool) -> jax.Array:
    """`left right`, or `left right^T`, in float32."""
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
    # A chip's default for float32 is less, and 16 bits know no more than one, whatever JAX's own default is set to.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _written_blocks(start: jax.Array, length: int, block: int, in_row: int, window: int) -> tuple[jax.Array, jax.Array]:
    """Which blocks of a cache the queries of all rows can see: int32 `[B in_row]`, as row times in_row plus block,
    row after row, of which the first int32 `[]` count."""
    first = jnp.maximum(start - (window - 1), 0) // block if window else jnp.zeros_like(start)
    counts = (start + (length - 1)) // block + 1 - first
    ends = jnp.cumsum(counts)
    step = jnp.arange(len(start) * in_row, dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(step[:, None] >= ends[None], axis=1, dtype=jnp.int32), len(start) - 1)
    # Row b begins with step ends[b] - counts[b]; a sum over rows in the place of a gather.
    own = row[:, None] == jnp.arange(len(start), dtype=jnp.int32)[None]
    shift = jnp.sum(jnp.where(own, (first - (ends - counts))[None], 0), axis=1, dtype=jnp.int32)
    # Steps past the last one are never taken, but an index that is looked up ahead has to be one.
    return row * in_row + jnp.clip(step + shift, 0, in_row - 1), ends[-1]

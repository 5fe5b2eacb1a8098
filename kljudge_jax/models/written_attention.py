"""Where attention reads of a cache only what was written: which kernel does it, and its call for caches on a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from kljudge_jax.kernels import gpu_attention, switch, tpu_attention
from kljudge_jax.models.attention import split_by_heads
from kljudge_jax.parallel.layout import Layout

Kernel = Callable[..., jax.Array]
"""Of queries `[B, G, N/G, T, D]`, start int32 `[B]`, keys and values `[B, G, S, D]` and, of an int8 cache, their scales
f32 `[B, G, S]`, on one device; `window` and `softcap` by name. `[B, G, N/G, T, D]`, of the queries' dtype."""


def can_read_written(keys: jax.Array | jax.ShapeDtypeStruct, platform: str) -> bool:
    """Whether rows of such keys `[B, G, S, D]` are read as far as they are written, there, once that is felt.

    On a TPU from 4096 slots on: below, a block of a thirty-second of a row would not fill the lanes, and to take a row
    block by block would take longer than to read all of it. On a GPU by `gpu_attention.reads_written`. Never on a CPU,
    whose own attention is `kernels.attention`, and nowhere where kernels are switched off.
    """
    if switch.is_off():
        return False
    if platform == "tpu":
        return keys.shape[2] >= tpu_attention.FEWEST_SLOTS
    return gpu_attention.reads_written(platform, keys.dtype, keys.shape)


def kernel_of(
    query: tuple[int, ...],
    keys: jax.Array | jax.ShapeDtypeStruct,
    dtype: jax.typing.DTypeLike,
    layout: Layout | None,
    platform: str,
) -> Kernel | None:
    """The kernel that attends to keys `[B, G, S, D]` for queries of a shape `[B, T, N, D]` and a dtype.

    None where XLA's product reads all of them: short caches, other platforms, and more queries than VMEM holds.
    """
    if not can_read_written(keys, platform):
        return None
    shapes = _grouped(query, keys.shape[1]), keys.shape
    ours, theirs = shapes if layout is None else (layout.attention_sharding(x).shard_shape(x) for x in shapes)
    if platform == "gpu":
        return _on_gpu if gpu_attention.pays(theirs) else None
    blocks = tpu_attention.takes(jax.ShapeDtypeStruct(ours, dtype), jax.ShapeDtypeStruct(theirs, keys.dtype))
    return None if blocks is None else functools.partial(tpu_attention.written_attention, blocks=blocks)


def attend_written(
    kernel: Kernel,
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    start: jax.Array,
    *,
    window: int = 0,
    softcap: float = 0.0,
    layout: Layout | None = None,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
) -> jax.Array:
    """As `attention.attend` over all slots, with `start` int32 `[B]` in the place of positions, by a kernel.

    Of a mesh each device takes the rows and heads that it holds.
    """
    batch, length, heads, dim = query.shape
    shape = _grouped(query.shape, keys.shape[1])
    grouped = split_by_heads(query.reshape(batch, length, heads * dim), layout)
    grouped = grouped.reshape(batch, length, *shape[1:3], dim).transpose(0, 2, 3, 1, 4)
    given = [grouped, start, keys, values] + ([] if key_scale is None else [key_scale, value_scale])
    attend = functools.partial(kernel, window=window, softcap=softcap)
    if layout is not None:
        given[0] = layout.attention(grouped)
        ours, theirs = (layout.attention_sharding(x).spec for x in (shape, keys.shape))
        rows, scales = PartitionSpec(theirs[0]), PartitionSpec(*theirs[:2])
        specs = (ours, rows, theirs, theirs, scales, scales)[: len(given)]
        # The interpreter of kernels, in which tests run, knows no arrays that vary from device to device.
        attend = jax.shard_map(attend, mesh=layout.mesh, in_specs=specs, out_specs=ours, check_vma=False)
    return attend(*given).transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _on_gpu(query: jax.Array, start: jax.Array, keys: jax.Array, values: jax.Array, **sees: Any) -> jax.Array:
    # Queries of one position lie side by side there: a tile of them sees few slots more than each.
    mixed = gpu_attention.written_attention(query.swapaxes(2, 3), keys, values, start, **sees)
    return mixed.swapaxes(2, 3).astype(query.dtype)


def _grouped(query: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The shape of queries `[B, T, N, D]` as `[B, G, N/G, T, D]`."""
    batch, length, heads, dim = query
    return batch, groups, heads // groups, length, dim

"""Where attention reads of a cache only what was written, and its call for caches that lie on a mesh."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

from kljudge_jax.kernels.written_attention import FEWEST_SLOTS, Blocks, takes, written_attention
from kljudge_jax.models.attention import split_by_heads
from kljudge_jax.parallel.layout import Layout


def is_long(slots: int, platform: str) -> bool:
    """Whether rows of so many slots are read as far as they are written, there.

    Not on a GPU or without native attention on a CPU. On a TPU from 4096 slots on: below, a block of a thirty-second
    of a row would not fill the lanes, and to take a row block by block would take longer than to read all of it.
    """
    return platform == "tpu" and slots >= FEWEST_SLOTS


def blocks_of(
    query: tuple[int, ...],
    keys: jax.Array | jax.ShapeDtypeStruct,
    dtype: jax.typing.DTypeLike,
    layout: Layout | None,
    platform: str,
) -> Blocks | None:
    """The blocks in which a device reads keys `[B, G, S, D]` for queries of a shape `[B, T, N, D]` and a dtype.

    None where XLA's product reads all of them: short caches, other platforms, and more queries than VMEM holds.
    """
    if not is_long(keys.shape[2], platform):
        return None
    shapes = _grouped(query, keys.shape[1]), keys.shape
    own = shapes if layout is None else tuple(layout.attention_sharding(x).shard_shape(x) for x in shapes)
    return takes(jax.ShapeDtypeStruct(own[0], dtype), jax.ShapeDtypeStruct(own[1], keys.dtype))


def attend_written(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    start: jax.Array,
    blocks: Blocks,
    *,
    window: int = 0,
    softcap: float = 0.0,
    layout: Layout | None = None,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
) -> jax.Array:
    """As `attention.attend` over all slots, with `start` int32 `[B]` in the place of positions, block by block.

    Of a mesh each device takes the rows and heads that it holds.
    """
    batch, length, heads, dim = query.shape
    shape = _grouped(query.shape, keys.shape[1])
    grouped = split_by_heads(query.reshape(batch, length, heads * dim), layout)
    grouped = grouped.reshape(batch, length, *shape[1:3], dim).transpose(0, 2, 3, 1, 4)
    given = [grouped, start, keys, values] + ([] if key_scale is None else [key_scale, value_scale])

    def attend(*given):
        return written_attention(*given, blocks=blocks, window=window, softcap=softcap)

    if layout is not None:
        ours, theirs = (layout.attention_sharding(x).spec for x in (shape, keys.shape))
        rows, scales = PartitionSpec(theirs[0]), PartitionSpec(*theirs[:2])
        specs = (ours, rows, theirs, theirs, scales, scales)[: len(given)]
        # The interpreter of kernels, in which tests run, knows no arrays that vary from device to device.
        attend = jax.shard_map(attend, mesh=layout.mesh, in_specs=specs, out_specs=ours, check_vma=False)
    mixed = attend(*given)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _grouped(query: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The shape of queries `[B, T, N, D]` as `[B, G, N/G, T, D]`."""
    batch, length, heads, dim = query
    return batch, groups, heads // groups, length, dim

"""Weights of 8, 6, 5 and 4 bits: how they are rounded, stored and read again.

Some columns of a row share a scale and perhaps a minimum, as in the files of llama.cpp: value v of an int8 weight
stands for `scale * v`, and of fewer bits value q, from 0 to 2^bits - 1, for `scale * (q - 2^(bits - 1))` without a
minimum and `scale * q + minimum` with one. Scales and minima are float16.

In rows, 32 columns in 4 bits are 16 bytes: byte j holds column j in its lower half and column j + 16 in its upper one.
What 5 or 6 bits have above these four follows, in 4 or 8 bytes: byte b of the four holds the bits of columns b, b + 4,
b + 8, ..., from its lowest on; the first four of the eight hold pairs of bits of columns 0 to 15 in the same way, the
others those of columns 16 to 31. In the tiled layout, which the native products read, the same bytes lie in another
order: of 16 outputs four neighbouring ones each, output by output.

XLA's compilers for TPU and GPU write the whole dequantized weight to memory where blocks lie so. What they read as it
is stored: int8 with one scale an output, which multiplies the product; and int4 in groups of columns, whose scales
multiply within the product on a TPU, and the groups' own products on a GPU. Each compiler wants the axes of groups in
an order of its own: stored in another one, a weight is laid out anew before a loop that reads it, and held twice.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

COLUMNS = 32  # of a row that are stored together
_TILE = 16  # outputs side by side

# A step of int4 in groups longer than a block is the best of these parts of the one that meets the largest magnitude:
# the more values share a step, the more they gain where the few largest ones are cut.
_PARTS_OF_A_STEP = np.linspace(1.0, 0.5, 11, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a matrix is quantized.

    Attributes:
      bits: 8, 6, 5 or 4, of a value.
      each: columns that share a scale: 16 with 6 bits, else 32.
      minimum: whether they share a minimum too; in 5 or 4 bits alone.
      group: None for the blocks of files; else the form for accelerators: 0 in 8 bits, for a scale an output, and in 4
        bits how many columns share a scale, which must divide those there are.
      order: of groups, how their axes are stored: "g" is the groups, "k" the columns of one, "o" the outputs. Else "".
    """

    bits: int
    minimum: bool = False
    group: int | None = None
    order: str = ""

    def __post_init__(self):
        assert self.bits in ((5, 4) if self.minimum else (8, 6, 5, 4))
        assert self.group is None or (self.bits == 8 and self.group == 0) or (self.bits == 4 and self.group > 0)
        assert sorted(self.order) == (["g", "k", "o"] if self.group else [])

    @property
    def each(self) -> int:
        assert self.group != 0, "all columns of a row"
        return self.group or (16 if self.bits == 6 else COLUMNS)

    @property
    def scale_dtype(self) -> Any:
        """Of scales and minima. Accelerators are slower with float16, and their int4 is multiplied in bfloat16."""
        return jnp.float16 if self.group is None else jnp.bfloat16 if self.group else jnp.float32


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "scale", "minimum"),
    meta_fields=("shape", "scheme"),
)
@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A quantized weight.

    Attributes:
      values: int8 `[O, C]` or, of fewer bits, uint8 `[O, C * bits / 8]` in rows, C being I up to a whole 32; in tiles
        `[ceil(O / 16), C * bits / 32, 16, 4]`. With a scale an output int8 `[O, I]`; in groups int4, or uint4 with a
        minimum, the axes I / group, group and O in the scheme's order.
      scale: float16 `[O, C / each]` in rows, `[ceil(O / 16), C / each, 16]` in tiles; float32 `[O]`, one an output;
        bfloat16 in groups, in the same order with 1 for group.
      minimum: the same, or None.
      shape: `(O, I)` of the dequantized weight.
      scheme: how they are stored.
    """

    values: jax.Array
    scale: jax.Array
    minimum: jax.Array | None
    shape: tuple[int, int]
    scheme: Scheme

    @property
    def tiled(self) -> bool:
        """Whether the layout is tiled."""
        return self.values.ndim == 4


INT8, INT4 = Scheme(8), Scheme(4)
INT8_PER_OUTPUT = Scheme(8, group=0)

_GROUPS_ON_GPU = (512, 256, 128, 64, COLUMNS)

# A GPU's products of groups are a batch of products, whose sums run over the last axis of both. A TPU's product has
# outputs along its lanes and, next to them, groups or a group's columns, whichever are more: only rows of which a
# device has no more than 32 groups, or 1024 columns, are laid out anew there.
_ORDERS = {"gpu": "gok", "tpu": "kgo"}


def scheme_for(bits: int, in_size: int, platform: str, ways: int = 1) -> Scheme:
    """How that platform's products want a matrix of 8 or 4 bits whose rows have that length.

    Rows that are no whole blocks of 32 take 8 bits. On a TPU groups cost nothing, and are the blocks of files. On a GPU
    each group's product is written to memory: they are as long as 512 columns, where that divides what one of `ways`
    devices has of a row.
    """
    if bits == 4 and can_be_int4(in_size):
        if platform == "cpu":
            return INT4
        group = COLUMNS if platform == "tpu" else _longest_group(in_size, ways)
        return Scheme(4, group=group, order=order_on(platform))
    return INT8 if platform == "cpu" else INT8_PER_OUTPUT


def kept_on(scheme: Scheme, platform: str, gathered: bool = False) -> Scheme:
    """How a matrix that a file has in blocks is kept on a platform; `gathered` is one whose rows are taken alone.

    A CPU keeps any block, a TPU those of 4 bits, whose rows do not lie together. The rest are rounded again to 8 bits
    with a scale an output, since their blocks would be slower: fewer bits would lose more than the file did.
    """
    if platform == "cpu":
        return scheme
    if platform == "tpu" and scheme.bits == 4 and not gathered:
        return dataclasses.replace(scheme, group=COLUMNS, order=order_on(platform))
    return INT8_PER_OUTPUT


def order_on(platform: str) -> str:
    """`Scheme.order` of weights in groups there; "" where there are none."""
    return _ORDERS.get(platform, "")


def _longest_group(in_size: int, ways: int) -> int:
    whole = ways if in_size % (ways * COLUMNS) == 0 else 1  # else no group is a device's own
    return next(group for group in _GROUPS_ON_GPU if in_size // whole % group == 0)


def stored_bits(dtype) -> int:
    """Bits that a number takes of a device's memory; NumPy gives int4 a byte."""
    return 4 if dtype in (jnp.int4, jnp.uint4) else 8 * jnp.dtype(dtype).itemsize


def can_be_int4(in_size: int) -> bool:
    """Whether rows of that length are whole blocks: others, which would be filled up, take 8 bits."""
    return in_size % COLUMNS == 0


@functools.partial(jax.jit, static_argnums=1)
def quantize(weight: jax.Array, scheme: Scheme) -> QuantizedTensor:
    """A weight `[O, I]` quantized, in rows, or in the accelerators' form that the scheme names.

    Without a minimum, in 8 bits a block's largest magnitude is met by 127 steps, and in fewer its value of largest
    magnitude by the first level; but groups of more than 32 take the step of least squared error of a few shorter ones
    and that. With a minimum, its least and largest values are met by the first and the last level. A block with a NaN
    or an infinity has a scale of NaN.
    """
    outputs, size = weight.shape
    wide = jnp.asarray(weight, jnp.float32)
    each = size if scheme.group == 0 else scheme.each
    assert scheme.group is None or size % each == 0
    blocks = jnp.pad(
        wide, ((0, 0), (0, -size % each if scheme.group else -size % COLUMNS if scheme.group is None else 0))
    )
    blocks = blocks.reshape(outputs, -1, each)
    least, most = jnp.min(blocks, axis=2), jnp.max(blocks, axis=2)
    levels = 2**scheme.bits
    if scheme.minimum:
        lowest, highest = 0, levels - 1
        step = (most - least) / highest
    elif scheme.bits == 8:
        lowest, highest = -127, 127
        step = jnp.maximum(most, -least) / 127
    else:
        lowest, highest = -levels // 2, levels // 2 - 1
        step = jnp.where(-least > most, least, most) / lowest
        if each > COLUMNS:
            step = _least_loss(blocks, step, lowest, highest)
    # What is no number must not be rounded to one. A maximum may drop a NaN, so this asks each weight.
    sound = jnp.all(jnp.isfinite(blocks), axis=2)
    largest = float(jnp.finfo(scheme.scale_dtype).max)
    scale = jnp.where(sound, jnp.clip(step, -largest, largest), jnp.nan).astype(scheme.scale_dtype)
    minimum = None
    if scheme.minimum:
        minimum = jnp.clip(least, -largest, largest).astype(scheme.scale_dtype)
        blocks = blocks - minimum.astype(jnp.float32)[..., None]
    found = _rounded(blocks, scale.astype(jnp.float32), lowest, highest)
    if scheme.group:
        return _in_groups(found, scale, minimum, (outputs, size), scheme)
    found = found.reshape(outputs, -1)
    if scheme.group == 0:
        return QuantizedTensor(found.astype(jnp.int8), scale[:, 0], None, (outputs, size), scheme)
    values = found.astype(jnp.int8) if scheme.bits == 8 else pack((found - lowest).astype(jnp.uint8), scheme.bits)
    return QuantizedTensor(values, scale, minimum, (outputs, size), scheme)


def _rounded(blocks: jax.Array, step: jax.Array, lowest: int, highest: int) -> jax.Array:
    """Blocks `[O, C / each, each]` in whole steps `[O, C / each]`, float32."""
    return jnp.clip(jnp.round(blocks / jnp.where(step == 0, 1, step)[..., None]), lowest, highest)


def _least_loss(blocks: jax.Array, step: jax.Array, lowest: int, highest: int) -> jax.Array:
    """Of some parts of each step the one by which its block loses least."""

    def loss(part):
        tried = part * step
        return jnp.sum((_rounded(blocks, tried, lowest, highest) * tried[..., None] - blocks) ** 2, axis=2)

    parts = jnp.asarray(_PARTS_OF_A_STEP)
    return step * parts[jnp.argmin(jax.lax.map(loss, parts), axis=0)]


def _in_groups(found, scale, minimum, shape, scheme) -> QuantizedTensor:
    """Whole steps `[O, I / group, group]`, and `[O, I / group]` of what groups share, as they are stored."""

    def stored(x, dtype):
        return transposed(x, "ogk", scheme.order).astype(dtype)

    values = stored(found, jnp.int4 if minimum is None else jnp.uint4)
    scale, minimum = (None if x is None else stored(x[..., None], scheme.scale_dtype) for x in (scale, minimum))
    return QuantizedTensor(values, scale, minimum, shape, scheme)


def transposed(x: jax.Array, order: str, wanted: str) -> jax.Array:
    """An array whose axes have one order, in another one."""
    return jnp.transpose(x, [order.index(axis) for axis in wanted])


@functools.partial(jax.jit, static_argnums=1)
def to_groups(weight: QuantizedTensor, scheme: Scheme) -> QuantizedTensor:
    """A weight of 4 bits in rows, in groups of its blocks: the same values, scales and minima rounded to bfloat16.

    Args:
      weight: whose rows are whole blocks.
      scheme: the weight's own, with such groups.
    """
    assert scheme == dataclasses.replace(weight.scheme, group=COLUMNS, order=scheme.order)
    assert weight.scheme.bits == 4 and weight.shape[1] % COLUMNS == 0 and not weight.tiled
    found = _unpack(weight.values, 4).reshape(*weight.scale.shape, COLUMNS).astype(jnp.int8)
    found = found if weight.scheme.minimum else found - 8
    return _in_groups(found, weight.scale, weight.minimum, weight.shape, scheme)


def pack(values, bits: int):
    """Values uint8 `[O, C]` of 4, 5 or 6 bits as they are stored in rows, `[O, C * bits / 8]`. Of JAX or NumPy."""
    assert bits in (4, 5, 6)
    xp = jnp if isinstance(values, jax.Array) else np
    blocks = values.reshape(len(values), -1, COLUMNS)
    lower = blocks & 15
    parts = [lower[..., : COLUMNS // 2] | (lower[..., COLUMNS // 2 :] << 4)]
    if bits > 4:
        # Four columns at a time, as bytes of a word, whose bits never leave them.
        places = _places(bits, np).ravel()
        words = (blocks >> 4).view(np.uint32).reshape(*blocks.shape[:2], bits - 4, len(places))
        shared = functools.reduce(operator.or_, (words[..., i] << int(place) for i, place in enumerate(places)))
        parts.append(shared.view(np.uint8).reshape(*blocks.shape[:2], -1))
    return xp.concatenate(parts, axis=2).reshape(len(values), -1)


def _unpack(stored: jax.Array, bits: int) -> jax.Array:
    """The values of `pack`."""
    blocks = stored.reshape(len(stored), -1, COLUMNS * bits // 8)
    half = blocks[..., : COLUMNS // 2]
    values = jnp.concatenate([half & 15, half >> 4], axis=2)
    if bits > 4:
        above = blocks[..., COLUMNS // 2 :].reshape(*blocks.shape[:2], bits - 4, 1, 4)
        above = above >> _places(bits, jnp)[None, None, None]
        values = values | ((above & (2 ** (bits - 4) - 1)) << 4).reshape(values.shape)
    return values.reshape(len(stored), -1)


def _places(bits: int, xp):
    """Where in a byte the bits above the lower four lie, of the columns that share it: `[columns, 1]`."""
    return xp.arange(0, 8, bits - 4, dtype=np.uint8)[:, None]


@jax.jit
def to_tiles(weight: QuantizedTensor) -> QuantizedTensor:
    """A weight in rows as a tiled one; outputs up to a whole tile are zeros."""

    def tiles(x, width):
        x = jnp.pad(x, ((0, -len(x) % _TILE), (0, 0))).reshape(-1, _TILE, x.shape[1] // width, width)
        return jnp.swapaxes(x, 1, 2)

    least = None if weight.minimum is None else tiles(weight.minimum, 1)[..., 0]
    return QuantizedTensor(tiles(weight.values, 4), tiles(weight.scale, 1)[..., 0], least, weight.shape, weight.scheme)


def dequantize(weight: QuantizedTensor, dtype) -> jax.Array:
    """The dequantized weight, `[O, I]` in `dtype`."""
    if weight.scheme.group == 0:
        return _per_output(weight.values, weight.scale, dtype)
    if weight.scheme.group:
        return transposed(in_groups(weight, dtype), weight.scheme.order, "ogk").reshape(-1, weight.shape[1])
    if weight.tiled:
        values, scale, minimum = (
            None if x is None else jnp.swapaxes(x, 1, 2).reshape(len(x) * _TILE, -1)[: weight.shape[0]]
            for x in (weight.values, weight.scale, weight.minimum)
        )
    else:
        values, scale, minimum = weight.values, weight.scale, weight.minimum
    return _dequantize_rows(values, scale, minimum, weight, dtype)


def rows_of(weight: QuantizedTensor, outputs: jax.Array, dtype) -> jax.Array:
    """Some rows of the dequantized weight: `outputs` int32 `[...]`, clipped to those there are, to `[..., I]`."""
    at = jnp.clip(outputs.reshape(-1), 0, weight.shape[0] - 1)
    return dequantize(some_outputs(weight, at), dtype).reshape(*outputs.shape, -1)


def some_outputs(weight: QuantizedTensor, outputs: jax.Array) -> QuantizedTensor:
    """The weight of some outputs int32 `[N]` alone: the same numbers, in rows where the weight is tiled."""
    if weight.tiled:
        tile, lane = outputs // _TILE, outputs % _TILE
        values = weight.values[tile, :, lane].reshape(len(outputs), -1)
        scale = weight.scale[tile, :, lane]
        minimum = None if weight.minimum is None else weight.minimum[tile, :, lane]
    else:
        before = (slice(None),) * outputs_axis(weight.scheme)
        at = (*before, outputs)
        values, scale = weight.values[at], weight.scale[at]
        minimum = None if weight.minimum is None else weight.minimum[at]
    return QuantizedTensor(values, scale, minimum, (len(outputs), weight.shape[1]), weight.scheme)


def in_groups(weight: QuantizedTensor, dtype) -> jax.Array:
    """A weight in groups, dequantized where its values lie: its axes in the scheme's order, in `dtype`."""
    wide = weight.values.astype(jnp.float32) * weight.scale.astype(jnp.float32)
    if weight.minimum is not None:
        wide = wide + weight.minimum.astype(jnp.float32)
    return wide.astype(dtype)


def outputs_axis(scheme: Scheme) -> int:
    """Which axis of the leaves of a weight, as `quantize` makes them, its outputs are."""
    return scheme.order.index("o") if scheme.group else 0


def _per_output(values, scale, dtype):
    return (values.astype(jnp.float32) * scale[:, None]).astype(dtype)


def _accelerated_rows(weight, at, dtype):
    """Rows `at` of a weight in one of the accelerators' forms, `[N, I]`."""
    if weight.scheme.group == 0:
        return _per_output(weight.values[at], weight.scale[at], dtype)
    before = (slice(None),) * outputs_axis(weight.scheme)
    parts = (None if x is None else x[(*before, at)] for x in (weight.values, weight.scale, weight.minimum))
    some = QuantizedTensor(*parts, (len(at), weight.shape[1]), weight.scheme)
    return dequantize(some, dtype)


def _dequantize_rows(values, scale, minimum, weight, dtype):
    """Rows that are stored so, of a weight, as what they mean."""
    bits = weight.scheme.bits
    if bits < 8:
        values = _unpack(values, bits).astype(jnp.float32) - (2 ** (bits - 1) if minimum is None else 0)
    blocks = values.astype(jnp.float32).reshape(*scale.shape, -1) * scale.astype(jnp.float32)[..., None]
    if minimum is not None:
        blocks = blocks + minimum.astype(jnp.float32)[..., None]
    return blocks.reshape(len(values), -1)[:, : weight.shape[1]].astype(dtype)

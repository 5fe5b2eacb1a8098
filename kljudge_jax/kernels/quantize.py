"""Weights of 8, 6, 5 and 4 bits: how they are rounded, stored and read again.

Some columns of a row share a scale and perhaps a minimum, as in the files of llama.cpp: value v of an int8 weight
stands for `scale * v`, and of fewer bits value q, from 0 to 2^bits - 1, for `scale * (q - 2^(bits - 1))` without a
minimum and `scale * q + minimum` with one. Scales and minima are float16.

In rows, 32 columns in 4 bits are 16 bytes: byte j holds column j in its lower half and column j + 16 in its upper one.
What 5 or 6 bits have above these four follows, in 4 or 8 bytes: byte b of the four holds the bits of columns b, b + 4,
b + 8, ..., from its lowest on; the first four of the eight hold pairs of bits of columns 0 to 15 in the same way, the
others those of columns 16 to 31. In the tiled layout, which the native products read, the same bytes lie in another
order: of 16 outputs four neighbouring ones each, output by output.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

COLUMNS = 32  # of a row that are stored together
_TILE = 16  # outputs side by side
_LARGEST = float(jnp.finfo(jnp.float16).max)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a matrix is quantized.

    Attributes:
      bits: 8, 6, 5 or 4, of a value.
      each: columns that share a scale: 16 with 6 bits, else 32.
      minimum: whether they share a minimum too; in 5 or 4 bits alone.
    """

    bits: int
    minimum: bool = False

    def __post_init__(self):
        assert self.bits in ((5, 4) if self.minimum else (8, 6, 5, 4))

    @property
    def each(self) -> int:
        return 16 if self.bits == 6 else COLUMNS


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
        `[ceil(O / 16), C * bits / 32, 16, 4]`.
      scale: float16 `[O, C / each]` in rows, `[ceil(O / 16), C / each, 16]` in tiles.
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
        """Whether the layout is tiled; rows if not."""
        return self.values.ndim == 4


INT8, INT4 = Scheme(8), Scheme(4)


def can_be_int4(in_size: int) -> bool:
    """Whether rows of that length are whole blocks: others, which would be filled up, take 8 bits."""
    return in_size % COLUMNS == 0


@functools.partial(jax.jit, static_argnums=1)
def quantize(weight: jax.Array, scheme: Scheme) -> QuantizedTensor:
    """A weight `[O, I]` quantized, in rows.

    Without a minimum, in 8 bits a block's largest magnitude is met by 127 steps, and in fewer its value of largest
    magnitude by the first level. With one, its least and largest values are met by the first and the last level. A
    block with a NaN or an infinity has a scale of NaN.
    """
    outputs, size = weight.shape
    wide = jnp.asarray(weight, jnp.float32)
    blocks = jnp.pad(wide, ((0, 0), (0, -size % COLUMNS))).reshape(outputs, -1, scheme.each)
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
    # What is no number must not be rounded to one. A maximum may drop a NaN, so this asks each weight.
    sound = jnp.all(jnp.isfinite(blocks), axis=2)
    scale = jnp.where(sound, jnp.clip(step, -_LARGEST, _LARGEST), jnp.nan).astype(jnp.float16)
    minimum = None
    known = scale.astype(jnp.float32)[..., None]
    if scheme.minimum:
        minimum = jnp.clip(least, -_LARGEST, _LARGEST).astype(jnp.float16)
        blocks = blocks - minimum.astype(jnp.float32)[..., None]
    found = jnp.clip(jnp.round(blocks / jnp.where(known == 0, 1, known)), lowest, highest)
    found = found.reshape(outputs, -1)
    values = found.astype(jnp.int8) if scheme.bits == 8 else pack((found - lowest).astype(jnp.uint8), scheme.bits)
    return QuantizedTensor(values, scale, minimum, (outputs, size), scheme)


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
    if weight.tiled:
        tile, lane = at // _TILE, at % _TILE
        values = weight.values[tile, :, lane].reshape(len(at), -1)
        scale, minimum = (None if x is None else x[tile, :, lane] for x in (weight.scale, weight.minimum))
    else:
        values, scale = weight.values[at], weight.scale[at]
        minimum = None if weight.minimum is None else weight.minimum[at]
    return _dequantize_rows(values, scale, minimum, weight, dtype).reshape(*outputs.shape, -1)


def _dequantize_rows(values, scale, minimum, weight, dtype):
    """Rows that are stored so, of a weight, as what they mean."""
    bits = weight.scheme.bits
    if bits < 8:
        values = _unpack(values, bits).astype(jnp.float32) - (2 ** (bits - 1) if minimum is None else 0)
    blocks = values.astype(jnp.float32).reshape(*scale.shape, -1) * scale.astype(jnp.float32)[..., None]
    if minimum is not None:
        blocks = blocks + minimum.astype(jnp.float32)[..., None]
    return blocks.reshape(len(values), -1)[:, : weight.shape[1]].astype(dtype)

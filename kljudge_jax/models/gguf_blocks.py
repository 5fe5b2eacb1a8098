"""Quantised blocks of GGUF files as integers with scales, as they are: nothing is rounded but a block's scale and
minimum, which some kinds make of two numbers, to float16."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kljudge_jax.kernels.quantize import COLUMNS, Scheme, pack

_FORMS = {
    GGMLQuantizationType.Q4_0: Scheme(4),
    GGMLQuantizationType.Q4_1: Scheme(4, minimum=True),
    GGMLQuantizationType.Q4_K: Scheme(4, minimum=True),
    GGMLQuantizationType.Q5_0: Scheme(5),
    GGMLQuantizationType.Q5_1: Scheme(5, minimum=True),
    GGMLQuantizationType.Q5_K: Scheme(5, minimum=True),
    GGMLQuantizationType.Q6_K: Scheme(6),
    GGMLQuantizationType.Q8_0: Scheme(8),
}

Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def form_of(kind: GGMLQuantizationType) -> Scheme | None:
    """How integers of that kind are stored here; None where a file has floats."""
    return _FORMS.get(kind)


def integers(rows: np.ndarray, kind: GGMLQuantizationType) -> Parts:
    """Values, scales and minima (see `kernels.quantize`) of some rows of bytes, uint8 `[O, _]`."""
    outputs = len(rows)
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
    values, scale, minimum = _READ[kind](blocks)

    def shaped(x: np.ndarray, dtype=None) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(x, dtype).reshape(outputs, -1)

    least = None if minimum is None else shaped(minimum, np.float16)
    return shaped(values), shaped(scale, np.float16), least


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at some byte of each block, `[N, 1]`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 `[N, 16]` to `[N, 32]`: the lower halves, then the upper ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth(packed: np.ndarray) -> np.ndarray:
    """Bit i of 4 bytes is the fifth one of value i: uint8 `[N, 4]` to `[N, 32]`, 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(blocks: np.ndarray) -> Parts:
    return blocks[:, 2:], _half(blocks, 0), None


def _q4_1(blocks: np.ndarray) -> Parts:
    return blocks[:, 4:], _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> Parts:
    return pack(_nibbles(blocks[:, 6:]) | _fifth(blocks[:, 2:6]), 5), _half(blocks, 0), None


def _q5_1(blocks: np.ndarray) -> Parts:
    return pack(_nibbles(blocks[:, 8:]) | _fifth(blocks[:, 4:8]), 5), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> Parts:
    return blocks[:, 2:].view(np.int8), _half(blocks, 0), None


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of 6 bits, of 12 bytes: uint8 `[N, 8]` each."""
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1)
    return scales, np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1)


def _four_or_five(blocks: np.ndarray, packed: np.ndarray, fifth: np.ndarray | None) -> Parts:
    count = len(blocks)
    # 32 bytes hold two blocks of 32 columns, one in their lower halves and one in their upper ones.
    pairs = packed.reshape(count, 4, 1, COLUMNS)
    values = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(count, 8, COLUMNS)
    scales, minima = _six_bits(blocks[:, 4:16])
    scale = _half(blocks, 0).astype(np.float32) * scales
    minimum = -_half(blocks, 2).astype(np.float32) * minima
    if fifth is None:
        return pack(values.reshape(count, -1), 4), scale, minimum
    above = (fifth[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return pack((values | above).reshape(count, -1), 5), scale, minimum


def _q4_k(blocks: np.ndarray) -> Parts:
    return _four_or_five(blocks, blocks[:, 16:], None)


def _q5_k(blocks: np.ndarray) -> Parts:
    return _four_or_five(blocks, blocks[:, 48:], blocks[:, 16:48])


def _q6_k(blocks: np.ndarray) -> Parts:
    count = len(blocks)
    low, high = blocks[:, :128].reshape(count, 2, 1, 64), blocks[:, 128:192].reshape(count, 2, 1, 32)
    fours = np.concatenate([low & 15, low >> 4], axis=2).reshape(count, 2, 4, 32)
    twos = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    values = pack((fours | twos << 4).reshape(count, -1), 6)
    return values, _half(blocks, 208).astype(np.float32) * blocks[:, 192:208].view(np.int8), None


_READ = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
    GGMLQuantizationType.Q8_0: _q8_0,
}

"""Every block format against a decoder written from its definition (ggml-quants.c), one number at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize
from tiny_gguf import write_llama

from kljudge_jax.kernels.quantize import dequantize
from kljudge_jax.models.gguf import GGUFFile


def half(block, at):
    return block[at : at + 2].view(np.float16).astype(np.float32)[0]


def nibbles(packed):
    """Low halves first, then high ones."""
    return np.concatenate([packed & 15, packed >> 4]).astype(np.int32)


def fifth_bits(packed):
    word = int.from_bytes(packed.tobytes(), "little")
    return np.array([word >> i & 1 for i in range(32)])


def q8_0(block):
    return half(block, 0) * block[2:34].view(np.int8)


def q4_0(block):
    return half(block, 0) * (nibbles(block[2:18]) - 8)


def q4_1(block):
    return half(block, 0) * nibbles(block[4:20]) + half(block, 2)


def q5_0(block):
    return half(block, 0) * (nibbles(block[6:22]) + 16 * fifth_bits(block[2:6]) - 16)


def q5_1(block):
    return half(block, 0) * (nibbles(block[8:24]) + 16 * fifth_bits(block[4:8])) + half(block, 2)


def scale_and_minimum(packed, i):
    """The i-th of 8 pairs of 6-bit numbers in 12 bytes."""
    packed = packed.astype(int)
    if i < 4:
        return packed[i] & 63, packed[i + 4] & 63
    scale = packed[i + 4] & 15 | packed[i - 4] >> 6 << 4
    return scale, packed[i + 4] >> 4 | packed[i] >> 6 << 4


def four_or_five_bits(block, low, high):
    values = []
    for i in range(8):
        scale, minimum = scale_and_minimum(block[4:16], i)
        for j in range(32):
            number = int(low[32 * (i // 2) + j]) >> 4 * (i % 2) & 15
            if high is not None:
                number |= (int(high[j]) >> i & 1) << 4
            values.append(half(block, 0) * scale * number - half(block, 2) * minimum)
    return values


def q4_k(block):
    return four_or_five_bits(block, block[16:144], None)


def q5_k(block):
    return four_or_five_bits(block, block[48:176], block[16:48])


def q6_k(block):
    values = np.zeros(256, np.float32)
    scales = block[192:208].view(np.int8)
    for i in range(256):
        part, quarter, j = i // 128, i % 128 // 32, i % 32
        low = int(block[64 * part + 32 * (quarter % 2) + j]) >> 4 * (quarter // 2) & 15
        high = int(block[128 + 32 * part + j]) >> 2 * quarter & 3
        values[i] = half(block, 208) * scales[i // 16] * ((low | high << 4) - 32)
    return values


# The decoder, and where the block holds float16 scales.
FORMATS = {
    "Q8_0": (q8_0, [0]),
    "Q4_0": (q4_0, [0]),
    "Q4_1": (q4_1, [0, 2]),
    "Q5_0": (q5_0, [0]),
    "Q5_1": (q5_1, [0, 2]),
    "Q4_K": (q4_k, [0, 2]),
    "Q5_K": (q5_k, [0, 2]),
    "Q6_K": (q6_k, [208]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_random_blocks_decode_by_the_definition(name, tmp_path):
    decode, scales = FORMATS[name]
    kind = GGMLQuantizationType[name]
    width, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, (5, 2, size), dtype=np.uint8)  # 5 outputs of 2 blocks each
    for at in scales:
        blocks[..., at : at + 2] = rng.normal(size=(5, 2, 1)).astype(np.float16).view(np.uint8)
    want = np.array([[decode(block) for block in row] for row in blocks]).reshape(5, 2 * width)
    data = blocks.reshape(5, 2 * size)
    path = write_llama(tmp_path / "tiny.gguf", {"blk.0.ffn_up.weight": (data, kind), "extra.weight": (data, kind)})
    file = GGUFFile(path)
    assert file.shapes()["layers.0.mlp.up.weight"] == (5, 2 * width)
    np.testing.assert_allclose(file.read("layers.0.mlp.up.weight"), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(file.read("extra.weight"), want, rtol=1e-5, atol=1e-6)
    # As integers they are the same, but for scales and minima of K kinds, which are products rounded to float16.
    kept = file.read_quantized("layers.0.mlp.up.weight", slice(1, 4))
    assert kept.shape == (3, 2 * width) and kept.scheme == file.schemes()["layers.0.mlp.up.weight"]
    levels = 128 if kept.scheme.bits == 8 else 2**kept.scheme.bits - 1
    rounding = 2**-11 * levels * np.repeat(np.abs(kept.scale.astype(np.float32)), kept.scheme.each, axis=1)
    if kept.minimum is not None:
        rounding += 2**-11 * np.repeat(np.abs(kept.minimum.astype(np.float32)), kept.scheme.each, axis=1)
    got = np.asarray(dequantize(jax.tree.map(jnp.asarray, kept), jnp.float32))
    assert (np.abs(got - want[1:4]) <= (rounding if "K" in name else 1e-6 * np.abs(want[1:4]))).all()
    assert jnp.dtype(kept.scale.dtype) == jnp.float16


# Of numbers from -1 to 1: half the distance of two levels, but all of it next to the one end of the types that have a
# level less there.
ERRORS = {
    "Q4_0": 1 / 8,
    "Q4_1": 1 / 15,
    "Q5_0": 1 / 16,
    "Q5_1": 1 / 31,
    "Q8_0": 0.5 / 127,
    "F16": 2**-12,
    "BF16": 2**-9,
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_was_quantised_comes_back_within_its_error(name, tmp_path):
    kind = GGMLQuantizationType[name]
    want = np.random.default_rng(5).uniform(-1, 1, (64, 256)).astype(np.float32)
    path = write_llama(tmp_path / "tiny.gguf", {"blk.0.ffn_up.weight": (quantize(want, kind), kind)})
    error = np.abs(GGUFFile(path).read("layers.0.mlp.up.weight") - want).max()
    assert ERRORS[name] / 2 < error < 1.1 * ERRORS[name]  # a scale is rounded to float16, too

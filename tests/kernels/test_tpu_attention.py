"""The TPU's kernel, interpreted on a CPU, against a plain attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.kernels.tpu_attention import (
    FEWEST_SLOTS,
    Blocks,
    _written_blocks,
    takes,
    written_attention,
)
from kljudge_jax.kernels.written_blocks import kernel_name, share_read

BLOCK = 16


def case(batch, groups, share, length, dim, slots, starts, window=0, dtype=np.float32):
    """Queries, starts and a cache in which every block that no query sees is NaN."""
    rng = np.random.default_rng(0)
    shapes = (batch, groups, share, length, dim), (batch, groups, slots, dim), (batch, groups, slots, dim)
    query, keys, values = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    for row, start in enumerate(starts):
        first = max(0, start - window + 1) // BLOCK * BLOCK if window else 0
        past = -(-(start + length) // BLOCK) * BLOCK
        for stored in (keys, values):
            stored[row, :, :first] = stored[row, :, past:] = np.nan
    return *(jnp.asarray(x, dtype) for x in (query / np.float32(dim**0.5), keys, values)), np.asarray(starts, np.int32)


def plain(query, keys, values, starts, window, softcap):
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    out = np.zeros(query.shape)
    for row, group, share, at in np.ndindex(query.shape[:4]):
        last = starts[row] + at
        seen = slice(max(0, last + 1 - window) if window else 0, last + 1)
        scores = keys[row, group, seen] @ query[row, group, share, at]
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        weights = np.exp(scores - scores.max())
        out[row, group, share, at] = weights / weights.sum() @ values[row, group, seen]
    return out


@pytest.mark.parametrize(
    ("shape", "starts", "window", "softcap", "heads"),
    [
        ((1, 2, 4, 1, 128, 128), [0], 0, 0.0, 2),
        ((4, 2, 2, 9, 64, 128), [0, 15, 60, 119], 0, 0.0, 1),
        ((3, 3, 1, 9, 8, 120), [7, 111, 33], 0, 20.0, 3),  # a last block beyond the end
        ((3, 1, 2, 9, 128, 128), [0, 16, 119], 10, 0.0, 1),
        ((3, 2, 2, 1, 8, 128), [0, 64, 127], 33, 5.0, 2),
    ],
)
def test_a_row_of_any_length_is_read_as_far_as_it_is_written(shape, starts, window, softcap, heads):
    query, keys, values, start = case(*shape, starts, window)
    sees = {"window": window, "softcap": softcap}
    found = written_attention(query, start, keys, values, blocks=Blocks(BLOCK, heads), interpret=True, **sees)
    np.testing.assert_allclose(found, plain(query, keys, values, start, **sees), atol=2e-6)


def test_sixteen_bits_round_weights_and_results_alone():
    query, keys, values, start = case(2, 2, 4, 9, 64, 128, [3, 90], dtype=jnp.bfloat16)
    sees = {"window": 0, "softcap": 0.0}
    found = written_attention(query, start, keys, values, blocks=Blocks(BLOCK, 2), interpret=True, **sees)
    assert found.dtype == jnp.bfloat16
    # A weight and the result are rounded to 8 bits each, and values are of the size of 4 at most.
    error = np.abs(np.asarray(found, np.float64) - plain(query, keys, values, start, **sees))
    assert error.max() <= 4 * 2 * 2.0**-8


@pytest.mark.parametrize("window", [0, 40])
def test_steps_are_the_blocks_that_are_written_and_a_plan_counts_as_many(window):
    starts, length, slots = [0, 5, 16, 100, 119], 9, 128
    steps, count = _written_blocks(jnp.asarray(starts, jnp.int32), length, BLOCK, slots // BLOCK, window)
    wanted = [
        row * (slots // BLOCK) + block
        for row, start in enumerate(starts)
        for block in range(slots // BLOCK)
        if block * BLOCK < start + length and (not window or (block + 1) * BLOCK > start - window + 1)
    ]
    assert steps[:count].tolist() == wanted
    name = kernel_name(BLOCK, slots, length, window)
    counted = [share_read(f"jit(f)/{name}/pallas_call", start + length) for start in starts]
    assert {of for _, of in counted} == {slots} and sum(read for read, _ in counted) == BLOCK * len(wanted)
    assert share_read("jit(f)/dot_general", 9) is None


@pytest.mark.parametrize("slots", [4096, 8192, 32768, 40000, 131072])
def test_a_row_a_quarter_full_is_read_for_at_most_115_hundredths_of_what_it_holds(slots):
    query = jax.ShapeDtypeStruct((8, 2, 4, 9, 128), jnp.bfloat16)
    block, _ = takes(query, jax.ShapeDtypeStruct((8, 2, slots, 128), jnp.bfloat16))
    for written in range(slots // 4, slots // 4 + 10):
        assert share_read(kernel_name(block, slots, 9, 0), written)[0] <= 1.15 * written


def test_short_rows_and_more_queries_than_vmem_holds_are_not_taken():
    def taken(length, slots, share=4):
        shapes = (8, 1, share, length, 128), (8, 1, slots, 128)
        return takes(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))

    assert taken(9, FEWEST_SLOTS) is not None and taken(9, FEWEST_SLOTS - 1) is None
    assert taken(128, FEWEST_SLOTS) is not None and taken(128, FEWEST_SLOTS, share=71) is None

"""What TPU and GPU multiply: int8 with a scale an output, int4 in groups. XLA's products are the same on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.kernels.place import Place
from kljudge_jax.kernels.product import product, products
from kljudge_jax.kernels.quantize import (
    INT4,
    INT8,
    INT8_PER_OUTPUT,
    QuantizedTensor,
    Scheme,
    dequantize,
    kept_on,
    outputs_axis,
    quantize,
    rows_of,
    scheme_for,
    to_groups,
)

# The orders of a TPU and of a GPU, and one of neither.
PER_GROUP = [
    Scheme(4, group=32, order="kgo"),
    Scheme(4, group=256, order="gok"),
    Scheme(4, minimum=True, group=32, order="kgo"),
    Scheme(4, group=64, order="gko"),
]
SCHEMES = [INT8_PER_OUTPUT, *PER_GROUP]
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
PLACES = [Place("tpu"), Place("gpu"), Place("cpu"), Place("tpu", local=False), Place("gpu", local=False)]
OUTPUTS, SIZE = 24, 768
ROWS = (1, 2, 9, 300)

_dequantize = jax.jit(dequantize, static_argnums=1)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def steps(weight):
    """The step of every element, `[O, I]`."""
    scale = np.abs(np.asarray(weight.scale, np.float32))
    if weight.scheme.group == 0:
        return np.broadcast_to(scale[:, None], weight.shape)
    return np.repeat(in_order(scale, weight.scheme, "ogk")[..., 0], weight.scheme.group, axis=1)


def in_order(x, scheme, wanted):
    return np.transpose(np.asarray(x), [scheme.order.index(axis) for axis in wanted])


def test_an_output_or_a_group_has_one_scale():
    per_output = quantize(draw(0, OUTPUTS, SIZE), INT8_PER_OUTPUT)
    assert per_output.values.shape == (OUTPUTS, SIZE) and per_output.values.dtype == jnp.int8
    assert per_output.scale.shape == (OUTPUTS,) and per_output.scale.dtype == jnp.float32
    for scheme in PER_GROUP:
        weight, groups = quantize(draw(0, OUTPUTS, SIZE), scheme), SIZE // scheme.group
        sizes = {"g": groups, "k": scheme.group, "o": OUTPUTS}
        assert weight.values.shape == tuple(sizes[axis] for axis in scheme.order)
        assert weight.values.dtype == (jnp.uint4 if scheme.minimum else jnp.int4)
        assert weight.scale.shape == tuple((sizes | {"k": 1})[axis] for axis in scheme.order)
        assert weight.scale.dtype == jnp.bfloat16
        for leaf in jax.tree.leaves(weight):
            assert leaf.shape[outputs_axis(scheme)] == OUTPUTS


def test_an_order_changes_no_number():
    weight = draw(17, OUTPUTS, SIZE)
    stored = [quantize(weight, Scheme(4, group=96, order=order)) for order in ("gko", "kgo", "gok")]
    for one in stored:
        for leaf, like in ((one.values, stored[0].values), (one.scale, stored[0].scale)):
            np.testing.assert_array_equal(in_order(leaf, one.scheme, "gko"), np.asarray(like))


def test_eight_bits_are_off_by_half_a_step_at_most():
    weight = draw(1, OUTPUTS, SIZE) * np.exp(draw(2, OUTPUTS, 1) * 4)  # no scale is lost where a row is small
    rounded = quantize(weight, INT8_PER_OUTPUT)
    assert (np.abs(_dequantize(rounded, jnp.float32) - weight) <= 0.5001 * steps(rounded)).all()


def test_four_bits_in_blocks_are_off_by_a_step_beside_the_end_that_has_no_level():
    weight = draw(3, OUTPUTS, SIZE)
    rounded = quantize(weight, Scheme(4, group=32, order="kgo"))
    off, step = np.abs(_dequantize(rounded, jnp.float32) - weight), steps(rounded)
    assert (off <= (1 + 2.0**-5) * step).all()  # the scale is bfloat16, and the missing level stands for as many steps
    inside = np.abs(weight) <= 7 * step
    assert (off[inside] <= 0.5001 * step[inside]).all() and inside.mean() > 0.9


def test_long_groups_lose_less_than_by_the_step_that_meets_their_largest():
    weight = np.random.default_rng(4).standard_t(5, (OUTPUTS, SIZE)).astype(np.float32)
    blocks = weight.reshape(OUTPUTS, -1, 256)
    least, most = blocks.min(2, keepdims=True), blocks.max(2, keepdims=True)
    step = np.where(-least > most, least, most) / -8
    met = (np.clip(np.round(blocks / step), -8, 7) * step).reshape(weight.shape)
    loss = np.square(_dequantize(quantize(weight, Scheme(4, group=256, order="gok")), jnp.float32) - weight).sum(1)
    assert (loss < np.square(met - weight).sum(1)).all()


def test_groups_of_a_block_hold_the_values_of_blocks():
    weight = draw(5, OUTPUTS, SIZE)
    for blocks in (INT4, Scheme(4, minimum=True)):
        rounded = quantize(weight, blocks)
        groups = to_groups(rounded, kept_on(blocks, "tpu"))
        assert groups.scheme == Scheme(4, blocks.minimum, 32, "kgo") and groups.shape == rounded.shape
        want, got = (np.asarray(_dequantize(x, jnp.float32)) for x in (rounded, groups))
        # What is shared is rounded to bfloat16.
        np.testing.assert_allclose(got, want, rtol=0, atol=16 * 2.0**-8 * steps(groups).max())
        if not blocks.minimum:
            np.testing.assert_allclose(got, want, rtol=2.0**-8)
            # Columns stay where they were: a column of a block, from the values themselves.
            meant = want / np.repeat(np.asarray(rounded.scale, np.float32), 32, axis=1)
            np.testing.assert_array_equal(np.asarray(groups.values, np.int8)[17, 3], np.round(meant[:, 3 * 32 + 17]))


@functools.partial(jax.jit, static_argnums=2)
def of_some_rows(x, weight, place):
    return [product(x[:count], weight, place) for count in ROWS]


@schemes
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_product_is_that_of_the_stored_weight(scheme, place):
    x, weight = draw(6, max(ROWS), SIZE), quantize(draw(7, OUTPUTS, SIZE), scheme)
    want = x.astype(np.float64) @ np.asarray(_dequantize(weight, jnp.float32), np.float64).T
    for count, got in zip(ROWS, of_some_rows(x, weight, place), strict=True):
        assert got.shape == (count, OUTPUTS) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, want[:count], rtol=0, atol=1e-6 * SIZE)


@schemes
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_of_16_bits_multiply_the_stored_weight(scheme, dtype):
    x, weight = draw(8, max(ROWS), SIZE).astype(dtype), quantize(draw(9, OUTPUTS, SIZE), scheme)
    want = x.astype(np.float64) @ np.asarray(_dequantize(weight, jnp.float32), np.float64).T
    step = 2.0 ** -(8 if dtype == jnp.bfloat16 else 11)
    for place in PLACES[:2]:
        for count, got in zip(ROWS, of_some_rows(x, weight, place), strict=True):
            # A weight in groups may be rounded to the dtype of the rows: errors add up like a random walk.
            assert np.abs(got - want[:count]).max() <= 6 * step * np.sqrt(SIZE)


@schemes
def test_some_rows_of_a_table_are_those_of_the_whole(scheme):
    weight = quantize(draw(10, OUTPUTS, SIZE), scheme)
    wanted = np.asarray([[0, 5], [OUTPUTS - 1, OUTPUTS + 3]])  # the last of them past the end
    got = jax.jit(rows_of, static_argnums=2)(weight, wanted, jnp.bfloat16)
    want = np.asarray(_dequantize(weight, jnp.bfloat16))
    np.testing.assert_array_equal(got, want[np.minimum(wanted, OUTPUTS - 1)])


@schemes
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_seen(scheme, poison):
    weight = draw(11, OUTPUTS, SIZE)
    weight[3, 700] = poison
    rounded = quantize(weight, scheme)
    for place in PLACES[:2]:
        got = np.asarray(product(draw(12, 2, SIZE), rounded, place))
        assert np.isnan(got[:, 3]).all() and np.isfinite(np.delete(got, 3, axis=1)).all()


@schemes
def test_a_row_that_is_no_number_stays_one_alone(scheme):
    x, weight = draw(13, 3, SIZE), quantize(draw(14, OUTPUTS, SIZE), scheme)
    x[1, 100] = np.inf
    for place in PLACES[:2]:
        got = np.asarray(product(x, weight, place))
        assert not np.isfinite(got[1]).any() and np.isfinite(got[[0, 2]]).all()


@schemes
def test_zeros_and_constants_are_met(scheme):
    weight = np.repeat(np.asarray([[0], [0.37], [-0.37]], np.float32), SIZE, axis=1)
    got = np.asarray(_dequantize(quantize(weight, scheme), jnp.float32))
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1:], weight[1:], rtol=4e-3)


def test_several_products_of_the_same_rows_are_those_of_each():
    x = draw(15, 4, SIZE)
    weights = [quantize(draw(16 + i, OUTPUTS, SIZE), scheme) for i, scheme in enumerate(SCHEMES)]
    for place in PLACES[:2]:
        for one, other in zip(products(x, weights, place), [product(x, w, place) for w in weights], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_each_platform_has_its_form():
    assert scheme_for(8, 100, "cpu") == INT8 and scheme_for(4, 96, "cpu") == INT4 and scheme_for(4, 80, "cpu") == INT8
    for platform in ("tpu", "gpu"):
        assert scheme_for(8, 100, platform) == scheme_for(4, 80, platform) == INT8_PER_OUTPUT
    assert scheme_for(4, 96, "tpu") == scheme_for(4, 4096, "tpu") == Scheme(4, group=32, order="kgo")
    assert scheme_for(4, 4096, "gpu") == Scheme(4, group=512, order="gok")
    assert [scheme_for(4, size, "gpu").group for size in (4096, 4864, 896, 96)] == [512, 256, 128, 32]
    # A device has whole groups: 28 of 512 columns do not divide over 8, and 3 blocks not over 2.
    assert [scheme_for(4, size, "gpu", ways).group for size, ways in ((14336, 4), (14336, 8), (96, 2))] == [
        512,
        256,
        32,
    ]


def test_a_file_keeps_the_blocks_that_a_platform_reads_as_such():
    blocks = [INT8, Scheme(6), Scheme(5, minimum=True), INT4, Scheme(4, minimum=True)]
    assert [kept_on(scheme, "cpu", gathered) for scheme in blocks for gathered in (False, True)] == [
        scheme for scheme in blocks for _ in range(2)
    ]
    assert [kept_on(scheme, "tpu") for scheme in blocks] == [INT8_PER_OUTPUT] * 3 + [PER_GROUP[0], PER_GROUP[2]]
    assert {kept_on(scheme, "tpu", gathered=True) for scheme in blocks} == {INT8_PER_OUTPUT}
    assert {kept_on(scheme, "gpu") for scheme in blocks} == {INT8_PER_OUTPUT}


def test_no_program_for_a_tpu_or_gpu_holds_the_dequantized_int8():
    x, shape = jax.ShapeDtypeStruct((8, SIZE), jnp.bfloat16), jax.ShapeDtypeStruct((OUTPUTS, SIZE), jnp.float32)
    weight = jax.eval_shape(lambda x: quantize(x, INT8_PER_OUTPUT), shape)
    assert isinstance(weight, QuantizedTensor)
    for place in PLACES[:2]:
        text = jax.jit(lambda x, weight, place=place: product(x, weight, place)).lower(x, weight).as_text()
        assert f"tensor<{OUTPUTS}x{SIZE}xf32>" not in text and f"tensor<{OUTPUTS}x{SIZE}xbf16>" in text

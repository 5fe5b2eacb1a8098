import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.product import product, products
from kljudge_jax.kernels.quantize import (
    INT4,
    INT8,
    QuantizedTensor,
    Scheme,
    can_be_int4,
    dequantize,
    pack,
    quantize,
    rows_of,
    to_tiles,
)

SCHEMES = [INT8, Scheme(6), Scheme(5), INT4, Scheme(5, minimum=True), Scheme(4, minimum=True)]
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
# Each is compiled: outputs around panels of 16 and pairs of them, columns around blocks of 32 and groups of 64.
SHAPES = [(outputs, size) for outputs in (1, 15, 16, 17, 32, 33, 40) for size in (1, 31, 32, 33, 64, 65, 150, 330)]
FEW = [*((scheme, (40, 330)) for scheme in SCHEMES), *((scheme, (1, 31)) for scheme in (INT8, SCHEMES[-1]))]
ROWS = (1, 5, 30)

# Operation by operation, every one of them would be compiled for every shape.
_widen = jax.jit(dequantize, static_argnums=1)
_product = jax.jit(product)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def draws(seed, shape):
    """Rows and a weight `[O, I]`."""
    return draw(seed, max(ROWS), shape[1]), draw(seed + 1, *shape)


def back(weight, dtype=jnp.float32):
    return np.asarray(_widen(weight, dtype))


def steps(weight):
    """The step of every element, `[O, I]`, in float32."""
    each = weight.scheme.each
    return np.repeat(np.abs(np.asarray(weight.scale, np.float32)), each, axis=1)[:, : weight.shape[1]]


@pytest.mark.parametrize("scheme", [INT8, Scheme(5, minimum=True), Scheme(4, minimum=True)], ids=str)
def test_rounding_is_off_by_half_a_step_at_most(scheme):
    weight = draw(0, 7, 50)
    rounded = quantize(weight, scheme)
    assert rounded.scheme == scheme and rounded.shape == (7, 50)
    assert rounded.values.shape == (7, 64 * scheme.bits // 8) and rounded.scale.shape == (7, 64 // scheme.each)
    # Scales and minima are float16: the ends of a block may be missed by some of their roundings.
    assert (np.abs(back(rounded) - weight) <= 0.5 * steps(rounded) + 2e-3 * np.abs(weight).max()).all()


@pytest.mark.parametrize("scheme", [Scheme(6), Scheme(5), INT4], ids=str)
def test_few_bits_without_a_minimum_are_off_by_a_step_beside_the_end_that_has_no_level(scheme):
    weight = draw(1, 5, 192)
    rounded = quantize(weight, scheme)
    assert rounded.scheme == scheme and rounded.values.dtype == np.uint8
    assert rounded.values.shape == (5, 24 * scheme.bits) and rounded.scale.shape == (5, 192 // scheme.each)
    step = steps(rounded)
    off = 1 + 2.0 ** (scheme.bits - 12)  # the scale is float16, and the missing level stands for as many steps
    assert (np.abs(back(rounded) - weight) <= off * step).all()
    inside = np.abs(weight) <= (2 ** (scheme.bits - 1) - 1) * step
    assert (np.abs(back(rounded) - weight)[inside] <= 0.5001 * step[inside]).all() and inside.mean() > 0.9


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_every_value_is_packed_in_its_own_bits(bits):
    values = np.random.default_rng(2).integers(0, 2**bits, (3, 96), dtype=np.uint8)
    packed = pack(values, bits)
    assert packed.dtype == np.uint8 and packed.shape == (3, 12 * bits)
    np.testing.assert_array_equal(jax.jit(pack, static_argnums=1)(values, bits), packed)
    scale = np.ones((3, 6 if bits == 6 else 3), np.float16)
    meant = back(QuantizedTensor(jnp.asarray(packed), jnp.asarray(scale), None, (3, 96), Scheme(bits)))
    np.testing.assert_array_equal(meant, values.astype(np.float32) - 2 ** (bits - 1))
    # By the description, one number at a time.
    for row, column in ((0, 0), (1, 37), (2, 95), (1, 79)):
        block, place = column // 32, column % 32
        stored = packed[row, 4 * bits * block : 4 * bits * (block + 1)].astype(int)
        value = stored[place % 16] >> 4 * (place // 16) & 15
        if bits == 5:
            value += 16 * (stored[16 + place % 4] >> place // 4 & 1)
        if bits == 6:
            value += 16 * (stored[16 + 4 * (place // 16) + place % 4] >> 2 * (place % 16 // 4) & 3)
        assert value == values[row, column]


@schemes
def test_a_value_goes_to_its_own_place_in_rows_and_in_panels(scheme):
    weight = np.zeros((19, 128), np.float32)
    weight[1, 97], weight[18, 70] = -8.0, 7.0
    rounded = quantize(weight, scheme)
    np.testing.assert_allclose(back(rounded), weight, atol=0.01)
    np.testing.assert_array_equal(back(to_tiles(rounded)), back(rounded))


@functools.partial(jax.jit, static_argnums=2)
def all_of(x, weight, scheme):
    """A weight in rows and in panels, and of each what is meant, some of its rows, and products with some of `x`.

    One program for all, and for both tests: compiling takes most of their time.
    """
    rounded, outputs = quantize(weight, scheme), weight.shape[0]
    wanted = jnp.asarray([[0, outputs - 1], [outputs // 2, outputs + 3]])  # the last of them past the end
    ways = rounded, to_tiles(rounded)
    return [
        (
            way,
            dequantize(way, jnp.float32),
            rows_of(way, wanted, jnp.float32),
            [product(x[:count], way) for count in ROWS],
        )
        for way in ways
    ]


def panels_hold_what_rows_do(scheme, shape, seed):
    outputs, _ = shape
    (rounded, meant, some, _), (panels, also_meant, also_some, _) = all_of(*draws(seed, shape), scheme)
    assert panels.tiled and not rounded.tiled and panels.scheme == scheme and panels.shape == shape
    np.testing.assert_array_equal(also_meant, meant)
    wanted = np.asarray([[0, outputs - 1], [outputs // 2, outputs - 1]])
    for found in (some, also_some):
        np.testing.assert_array_equal(found, np.asarray(meant)[wanted])


@settings(max_examples=40)
@given(few=st.sampled_from(FEW), seed=st.integers(0, 2**32 - 1))
def test_panels_hold_what_rows_do_and_give_each_of_them(few, seed):
    panels_hold_what_rows_do(*few, seed)


@pytest.mark.slow
@settings(max_examples=100)
@given(scheme=st.sampled_from(SCHEMES), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_panels_of_many_shapes_hold_what_rows_do(scheme, shape, seed):
    panels_hold_what_rows_do(scheme, shape, seed)


@schemes
def test_a_row_of_zeros_stays_one_and_a_constant_row_is_met(scheme):
    rounded = quantize(np.repeat(np.asarray([[0], [0.37], [-0.37]], np.float32), 64, axis=1), scheme)
    np.testing.assert_array_equal(back(rounded, jnp.bfloat16)[0], np.zeros(64))
    found = back(rounded)
    np.testing.assert_array_equal(found[0], np.zeros(64))
    np.testing.assert_allclose(found[1], 0.37, rtol=1e-3)
    np.testing.assert_allclose(found[2], -0.37, rtol=1e-3)


def test_rows_of_whole_blocks_can_be_int4():
    assert can_be_int4(96) and not can_be_int4(80)


def products_are_those_of_the_stored_weight(scheme, shape, seed):
    x, weight = draws(seed, shape)
    ways = all_of(x, weight, scheme)
    want = x.astype(np.float64) @ np.asarray(ways[0][1], np.float64).T
    for panels, (*_, products_found) in zip((False, True), ways, strict=True):
        for count, got in zip(ROWS, products_found, strict=True):
            # The native product rounds rows to 127 steps of the largest of 64 values: errors add up like a random walk.
            step = np.abs(x[:count]).max() / 127 / 2 if panels and library().ready else 1e-5
            assert got.shape == (count, shape[0])
            assert np.abs(got - want[:count]).max() <= 6 * step * np.sqrt(shape[1]), (count, panels)


@settings(max_examples=40)
@given(few=st.sampled_from(FEW), seed=st.integers(0, 2**32 - 1))
def test_a_product_is_that_of_the_stored_weight(few, seed):
    products_are_those_of_the_stored_weight(*few, seed)


@pytest.mark.slow
@settings(max_examples=100)
@given(scheme=st.sampled_from(SCHEMES), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_a_product_of_many_shapes_is_that_of_the_stored_weight(scheme, shape, seed):
    products_are_those_of_the_stored_weight(scheme, shape, seed)


@pytest.mark.skipif(not library().ready, reason=library().reason)
@schemes
def test_native_rows_of_whole_numbers_are_met_exactly_alone_and_beside_others(scheme):
    rng = np.random.default_rng(3)
    x = rng.integers(-127, 128, (29, 320)).astype(np.float32)
    x[:, ::64] = 127  # the step of every group is 1
    weight = to_tiles(quantize(rng.integers(-7, 8, (70, 320)).astype(np.float32), scheme))
    want = x.astype(np.float64) @ back(weight).astype(np.float64).T
    counts = (1, 2, 5, 6, 9, 12, 13, 25)
    together, *some = jax.jit(lambda x, weight: [product(x[:count], weight) for count in (29, *counts)])(x, weight)
    np.testing.assert_allclose(together, want, rtol=1e-5, atol=0.02)
    for count, got in zip(counts, some, strict=True):
        np.testing.assert_array_equal(got, together[:count])


@schemes
@pytest.mark.parametrize("tiles", [True, False])
def test_what_is_no_number_stays_in_its_row(scheme, tiles):
    weight = quantize(draw(4, 19, 128), scheme)
    for poison in (np.nan, np.inf):
        x = draw(5, 3, 128)
        x[1, 100] = poison
        got = np.asarray(_product(x, to_tiles(weight) if tiles else weight))
        assert not np.isfinite(got[1]).any() and np.isfinite(got[[0, 2]]).all()


@jax.jit
def one_by_one(x, ways):
    return [product(x, way) for way in ways]


def test_several_products_of_the_same_rows_may_be_stored_in_several_ways():
    x, weight = draw(6, 4, 96), draw(7, 8, 96)
    rounded = jax.jit(lambda weight: [quantize(weight, scheme) for scheme in SCHEMES])(weight)
    ways = [jnp.asarray(weight), *rounded, *jax.jit(lambda ways: [to_tiles(way) for way in ways])(rounded)]
    for one, other in zip(one_by_one(x, ways), jax.jit(products)(x, ways), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_several_weights_in_panels_are_one_piece_of_work():
    x, weights = draw(8, 3, 64), [draw(9 + i, 20 + i, 64) for i in range(len(SCHEMES))]
    ways = jax.jit(lambda weights: [to_tiles(quantize(*pair)) for pair in zip(weights, SCHEMES, strict=True)])(weights)
    together = jax.jit(products).lower(x, ways)
    assert together.as_text().count("kljudge_blocks") == (1 if library().ready else 0)
    for one, other in zip(together.compile()(x, ways), one_by_one(x, ways), strict=True):
        np.testing.assert_array_equal(one, other)

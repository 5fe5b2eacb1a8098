import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.product import product, products
from kljudge_jax.kernels.quantize import can_be_int4, from_int4, from_int8, to_int4, to_int8

FORMS = {"int8": (to_int8, from_int8), "int4": (to_int4, from_int4)}


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_int8_is_off_by_half_a_step_at_most():
    weight = draw(0, 7, 50)
    values, scale = to_int8(weight)
    assert values.dtype == np.int8 and scale.shape == (7,) and np.abs(values).max() == 127
    assert (np.abs(from_int8(values, scale, jnp.float32) - weight) <= scale[:, None] * 0.5001).all()


def test_int4_is_off_by_half_a_step_but_by_one_beside_the_end_without_a_level():
    weight = draw(1, 5, 192)
    values, scale = to_int4(weight)
    assert values.shape == (5, 96) and values.dtype == np.uint8 and scale.shape == (5, 6)
    back = np.asarray(from_int4(values, scale, jnp.float32))
    step = np.repeat(np.abs(scale.astype(np.float32)), 32, axis=1)
    assert (np.abs(back - weight) <= 1.04 * step).all()
    inside = np.abs(weight) <= 7 * step
    assert (np.abs(back - weight)[inside] <= 0.5001 * step[inside]).all() and inside.mean() > 0.9


def test_a_value_goes_to_its_own_place():
    weight = np.zeros((2, 128), np.float32)
    weight[1, 97], weight[1, 70] = -8.0, 7.0
    np.testing.assert_array_equal(from_int4(*to_int4(weight), jnp.float32), weight)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_zeros_stays_one(form):
    to, back = FORMS[form]
    np.testing.assert_array_equal(back(*to(np.zeros((3, 64), np.float32)), jnp.bfloat16), np.zeros((3, 64)))


def test_rows_of_whole_blocks_can_be_int4():
    assert can_be_int4(128) and not can_be_int4(96)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(["int8", "int4"]),
    rows=st.integers(1, 12),
    outputs=st.integers(1, 40),
    blocks=st.integers(1, 5),
    odd=st.integers(0, 63),
    local=st.booleans(),
)
def test_a_product_is_that_of_the_stored_weight(form, rows, outputs, blocks, odd, local):
    size = 64 * blocks + (odd if form == "int8" else 0)
    to, back = FORMS[form]
    x, stored = draw(size, rows, size), to(draw(size + 1, outputs, size))
    want = x.astype(np.float64) @ np.asarray(back(*stored, jnp.float32), np.float64).T
    got = np.asarray(product(jnp.asarray(x), tuple(map(jnp.asarray, stored)), local))
    # The native product rounds rows to 127 steps of the largest of 64 values: errors add up like a random walk.
    step = np.abs(x).max() / 127 / 2 if local and library().ready else 1e-5
    assert np.abs(got - want).max() <= 6 * step * np.sqrt(size)


@pytest.mark.skipif(not library().ready, reason=library().reason)
@pytest.mark.parametrize("form", FORMS)
def test_native_rows_of_whole_numbers_are_met_exactly_alone_and_beside_others(form):
    to, back = FORMS[form]
    rng = np.random.default_rng(3)
    x = rng.integers(-127, 128, (11, 320)).astype(np.float32)
    x[:, ::64] = 127  # the step of every group is 1
    stored = tuple(map(jnp.asarray, to(rng.integers(-7, 8, (70, 320)).astype(np.float32))))
    want = x @ np.asarray(back(*stored, jnp.float32)).T
    together = np.asarray(product(jnp.asarray(x), stored))
    np.testing.assert_allclose(together, want, rtol=1e-5, atol=0.02)
    for count in (1, 2, 5, 6, 9):
        np.testing.assert_array_equal(product(jnp.asarray(x[:count]), stored), together[:count])


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_number_stays_in_its_row(form):
    stored = tuple(map(jnp.asarray, FORMS[form][0](draw(4, 6, 128))))
    for poison in (np.nan, np.inf):
        got = np.asarray(product(jnp.asarray(draw(5, 3, 128)).at[1, 100].set(poison), stored))
        assert not np.isfinite(got[1]).any() and np.isfinite(got[[0, 2]]).all()


def test_several_products_of_the_same_rows_may_be_stored_in_several_ways():
    x, weight = jnp.asarray(draw(6, 4, 64)), draw(7, 8, 64)
    ways = [jnp.asarray(weight), tuple(map(jnp.asarray, to_int8(weight))), tuple(map(jnp.asarray, to_int4(weight)))]
    alone = [product(x, way) for way in ways]
    for one, other in zip(alone, jax.jit(products)(x, ways), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)

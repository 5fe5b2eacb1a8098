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
    Form,
    Integers,
    can_be_int4,
    pack,
    round_to,
    rows_of,
    to_panels,
    widen,
)

FORMS = [INT8, Form(6), Form(5), INT4, Form(5, minimum=True), Form(4, minimum=True)]
forms = pytest.mark.parametrize("form", FORMS, ids=str)
# Around panels of 16, and pairs of them; the sizes below lie around blocks of 32 and 64. Few, since each is compiled.
OUTPUTS = st.sampled_from((1, 15, 16, 17, 32, 33, 40))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def back(weight, dtype=jnp.float32):
    return np.asarray(widen(weight, dtype))


def steps(weight):
    """The step of every element, `[O, I]`, in float32."""
    each = weight.form.each
    return np.repeat(np.abs(np.asarray(weight.scale, np.float32)), each, axis=1)[:, : weight.shape[1]]


@pytest.mark.parametrize("form", [INT8, Form(5, minimum=True), Form(4, minimum=True)], ids=str)
def test_rounding_is_off_by_half_a_step_at_most(form):
    weight = draw(0, 7, 50)
    rounded = round_to(weight, form)
    assert rounded.form == form and rounded.shape == (7, 50)
    assert rounded.values.shape == (7, 64 * form.bits // 8) and rounded.scale.shape == (7, 64 // form.each)
    # Scales and minima are float16: the ends of a block may be missed by some of their roundings.
    assert (np.abs(back(rounded) - weight) <= 0.5 * steps(rounded) + 2e-3 * np.abs(weight).max()).all()


@pytest.mark.parametrize("form", [Form(6), Form(5), INT4], ids=str)
def test_few_bits_without_a_minimum_are_off_by_a_step_beside_the_end_that_has_no_level(form):
    weight = draw(1, 5, 192)
    rounded = round_to(weight, form)
    assert rounded.form == form and rounded.values.dtype == np.uint8
    assert rounded.values.shape == (5, 24 * form.bits) and rounded.scale.shape == (5, 192 // form.each)
    step = steps(rounded)
    off = 1 + 2.0 ** (form.bits - 12)  # the scale is float16, and the missing level stands for as many steps
    assert (np.abs(back(rounded) - weight) <= off * step).all()
    inside = np.abs(weight) <= (2 ** (form.bits - 1) - 1) * step
    assert (np.abs(back(rounded) - weight)[inside] <= 0.5001 * step[inside]).all() and inside.mean() > 0.9


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_every_value_is_packed_in_its_own_bits(bits):
    values = np.random.default_rng(2).integers(0, 2**bits, (3, 96), dtype=np.uint8)
    packed = pack(values, bits)
    assert packed.dtype == np.uint8 and packed.shape == (3, 12 * bits)
    np.testing.assert_array_equal(pack(jnp.asarray(values), bits), packed)
    scale = np.ones((3, 6 if bits == 6 else 3), np.float16)
    meant = widen(Integers(jnp.asarray(packed), jnp.asarray(scale), None, (3, 96), Form(bits)), jnp.float32)
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


@forms
def test_a_value_goes_to_its_own_place_in_rows_and_in_panels(form):
    weight = np.zeros((19, 128), np.float32)
    weight[1, 97], weight[18, 70] = -8.0, 7.0
    rounded = round_to(weight, form)
    np.testing.assert_allclose(back(rounded), weight, atol=0.01)
    np.testing.assert_array_equal(back(to_panels(rounded)), back(rounded))


@settings(max_examples=25, deadline=None)
@given(form=st.sampled_from(FORMS), outputs=OUTPUTS, size=st.sampled_from((1, 31, 32, 33, 64, 65, 150)))
def test_panels_hold_what_rows_do_and_give_each_of_them(form, outputs, size):
    rounded = round_to(draw(size, outputs, size), form)
    panels = to_panels(rounded)
    assert panels.in_panels and not rounded.in_panels and panels.form == form and panels.shape == (outputs, size)
    np.testing.assert_array_equal(back(panels), back(rounded))
    wanted = jnp.asarray([[0, outputs - 1], [outputs // 2, outputs + 3]])  # the last of them past the end
    for weight in (rounded, panels):
        np.testing.assert_array_equal(
            rows_of(weight, wanted, jnp.float32), back(rounded)[np.minimum(wanted, outputs - 1)]
        )


@forms
def test_a_row_of_zeros_stays_one(form):
    np.testing.assert_array_equal(back(round_to(np.zeros((3, 64), np.float32), form), jnp.bfloat16), np.zeros((3, 64)))


@forms
def test_a_constant_row_is_met(form):
    np.testing.assert_allclose(back(round_to(np.full((2, 64), 0.37, np.float32), form)), 0.37, rtol=1e-3)


def test_rows_of_whole_blocks_can_be_int4():
    assert can_be_int4(96) and not can_be_int4(80)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    rows=st.sampled_from((1, 2, 5, 9, 10, 30)),
    outputs=OUTPUTS,
    size=st.sampled_from((1, 31, 32, 33, 64, 65, 330)),
    panels=st.booleans(),
)
def test_a_product_is_that_of_the_stored_weight(form, rows, outputs, size, panels):
    x, weight = draw(size, rows, size), round_to(draw(size + 1, outputs, size), form)
    want = x.astype(np.float64) @ back(weight).astype(np.float64).T
    got = np.asarray(product(jnp.asarray(x), to_panels(weight) if panels else weight))
    # The native product rounds rows to 127 steps of the largest of 64 values: errors add up like a random walk.
    step = np.abs(x).max() / 127 / 2 if panels and library().ready else 1e-5
    assert got.shape == want.shape and np.abs(got - want).max() <= 6 * step * np.sqrt(size)


@pytest.mark.skipif(not library().ready, reason=library().reason)
@forms
def test_native_rows_of_whole_numbers_are_met_exactly_alone_and_beside_others(form):
    rng = np.random.default_rng(3)
    x = rng.integers(-127, 128, (29, 320)).astype(np.float32)
    x[:, ::64] = 127  # the step of every group is 1
    weight = to_panels(round_to(rng.integers(-7, 8, (70, 320)).astype(np.float32), form))
    want = x.astype(np.float64) @ back(weight).astype(np.float64).T
    together = np.asarray(product(jnp.asarray(x), weight))
    np.testing.assert_allclose(together, want, rtol=1e-5, atol=0.02)
    for count in (1, 2, 5, 6, 9, 12, 13, 25):
        np.testing.assert_array_equal(product(jnp.asarray(x[:count]), weight), together[:count])


@forms
@pytest.mark.parametrize("panels", [True, False])
def test_what_is_no_number_stays_in_its_row(form, panels):
    weight = round_to(draw(4, 6, 128), form)
    for poison in (np.nan, np.inf):
        x = jnp.asarray(draw(5, 3, 128)).at[1, 100].set(poison)
        got = np.asarray(product(x, to_panels(weight) if panels else weight))
        assert not np.isfinite(got[1]).any() and np.isfinite(got[[0, 2]]).all()


def test_several_products_of_the_same_rows_may_be_stored_in_several_ways():
    x, weight = jnp.asarray(draw(6, 4, 96)), draw(7, 8, 96)
    ways = [jnp.asarray(weight), *(round_to(weight, form) for form in FORMS)]
    ways += [to_panels(way) for way in ways[1:]]
    alone = [product(x, way) for way in ways]
    for one, other in zip(alone, jax.jit(products)(x, ways), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_several_weights_in_panels_are_one_piece_of_work():
    x = jnp.asarray(draw(8, 3, 64))
    ways = [to_panels(round_to(draw(9 + i, 20 + i, 64), form)) for i, form in enumerate(FORMS)]
    text = jax.jit(products).lower(x, ways).as_text()
    assert text.count("kljudge_blocks") == (1 if library().ready else 0)
    for one, other in zip(products(x, ways), ways, strict=True):
        np.testing.assert_array_equal(one, product(x, other))

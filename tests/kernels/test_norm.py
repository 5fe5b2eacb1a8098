"""Native norms against float64 and XLA's, and the promise that they add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.norm import rms_norm, sum_and_norm
from kljudge_jax.kernels.place import Place

NATIVE, XLA = Place("cpu"), Place("cpu", local=False)
EPS = 1e-6
needs_native = pytest.mark.skipif(not library().ready, reason=library().reason)

_norm = jax.jit(rms_norm, static_argnums=(2, 3))
_sum_and_norm = jax.jit(sum_and_norm, static_argnums=(3, 4))


def case(*shape):
    rng = np.random.default_rng(sum(shape))
    drawn = [rng.standard_normal(size, np.float32) for size in (shape, shape, shape[-1:])]
    return drawn[0] * 3, drawn[1], drawn[2]


def exact(x, scale):
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + EPS) * scale


@pytest.mark.parametrize("place", [NATIVE, XLA], ids=["native", "xla"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 200), (90, 1536)])  # the last is split between threads
def test_norms_are_those_of_float64(place, shape):
    x, more, scale = case(*shape)
    np.testing.assert_allclose(_norm(x, scale, EPS, place), exact(x, scale), rtol=2e-6, atol=2e-6)
    total, normed = _sum_and_norm(x, more, scale, EPS, place)
    np.testing.assert_array_equal(total, x + more)
    np.testing.assert_allclose(normed, exact(x + more, scale), rtol=2e-6, atol=2e-6)


@needs_native
@pytest.mark.parametrize("size", [64, 200, 1536])
def test_a_row_is_the_same_to_the_bit_alone_and_beside_others(size):
    x, more, scale = case(40, size)
    want, (_, want_sum) = _norm(x, scale, EPS, NATIVE), _sum_and_norm(x, more, scale, EPS, NATIVE)
    for rows in (1, 9):
        np.testing.assert_array_equal(_norm(x[:rows], scale, EPS, NATIVE), want[:rows])
        np.testing.assert_array_equal(_sum_and_norm(x[:rows], more[:rows], scale, EPS, NATIVE)[1], want_sum[:rows])


@pytest.mark.parametrize("place", [NATIVE, XLA], ids=["native", "xla"])
def test_what_is_no_number_stays_none_and_in_its_row(place):
    x, more, scale = case(4, 70)
    clean = np.array(_norm(x, scale, EPS, place))
    x[1, 69], x[2, 3] = np.nan, np.inf
    got = np.array(_norm(x, scale, EPS, place))
    assert np.isnan(got[1]).all()
    assert np.isnan(got[2, 3]) and not np.delete(got[2], 3).any()  # inf / inf, and numbers by inf
    np.testing.assert_array_equal(got[[0, 3]], clean[[0, 3]])
    assert np.isnan(np.array(_sum_and_norm(more, x, scale, EPS, place)[1])[1]).all()


@needs_native
def test_bfloat16_is_rounded_once():
    x, _, scale = case(3, 200)
    x = jnp.asarray(x, jnp.bfloat16)
    got = _norm(x, scale, EPS, NATIVE)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, _norm(x.astype(jnp.float32), scale, EPS, NATIVE).astype(jnp.bfloat16))


@needs_native
def test_gradients_are_those_of_xla():
    given = case(3, 70)

    def gradients(place):
        def loss(x, more, scale):
            total, normed = sum_and_norm(x, more, scale, EPS, place)
            return jnp.sum(jnp.sin(normed)) + jnp.sum(jnp.cos(total) * rms_norm(x, scale, EPS, place))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*given)

    for got, want in zip(gradients(NATIVE), gradients(XLA), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@needs_native
def test_rows_of_a_vmap_are_those_of_one_call():
    x, more, scale = case(3, 4, 70)
    over = jax.jit(jax.vmap(lambda x, more: sum_and_norm(x, more, scale, EPS, NATIVE)))
    for got, want in zip(over(x, more), _sum_and_norm(x, more, scale, EPS, NATIVE), strict=True):
        np.testing.assert_array_equal(got, want)

"""Native attention against a plain one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljudge_jax.kernels.attention import cached_attention, is_native
from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.place import Place

pytestmark = pytest.mark.skipif(not library().ready, reason=library().reason)


def case(batch, time, groups, share, dim, slots, starts, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, time, groups * share, dim)] + [(batch, time, groups, dim)] * 2 + [(batch, groups, slots, dim)] * 2
    query, key, value, keys, values = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    start = np.asarray(starts, np.int32)
    for b in range(batch):  # what no query sees is never read
        keys[b, :, start[b] :] = np.nan
        values[b, :, start[b] :] = np.nan
    return query, key, value, start, keys, values


def plain(query, key, value, start, keys, values, window, softcap):
    keys, values, out = keys.astype(np.float64), values.astype(np.float64), np.zeros(query.shape)
    batch, time, heads, _ = query.shape
    share = heads // keys.shape[1]
    for b in range(batch):
        keys[b, :, start[b] : start[b] + time] = key[b].swapaxes(0, 1)
        values[b, :, start[b] : start[b] + time] = value[b].swapaxes(0, 1)
        for t in range(time):
            last = start[b] + t
            seen = slice(max(0, last + 1 - window) if window else 0, last + 1)
            for n in range(heads):
                scores = keys[b, n // share, seen] @ query[b, t, n].astype(np.float64)
                scores = softcap * np.tanh(scores / softcap) if softcap else scores
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ values[b, n // share, seen]
    return out, keys, values


_attention = jax.jit(cached_attention, static_argnames=("window", "softcap"))


def attention_is_the_plain_one(shape, window, softcap, data):
    (batch, time, *_), slots = shape, 60
    starts = data.draw(st.lists(st.integers(0, slots - time), min_size=batch, max_size=batch))
    given = case(*shape, slots, starts, data.draw(st.integers(0, 2**32 - 1)))
    want = plain(*given, window, softcap)
    got = _attention(*given, window=window, softcap=softcap)
    np.testing.assert_allclose(got[0], want[0], atol=2e-5)
    np.testing.assert_allclose(got[1], want[1])
    np.testing.assert_allclose(got[2], want[2])


@settings(max_examples=40)
@given(
    # Rows, queries each, groups, heads that share one, and their size. Few, since each is compiled.
    shape=st.sampled_from([(1, 1, 1, 1, 4), (3, 7, 2, 3, 80), (2, 4, 1, 2, 128)]),
    options=st.sampled_from([(0, 0.0), (1, 2.0), (5, 0.0), (40, 2.0)]),
    data=st.data(),
)
def test_attention_is_the_plain_one(shape, options, data):
    attention_is_the_plain_one(shape, *options, data)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    shape=st.tuples(
        st.integers(1, 3),
        st.integers(1, 7),
        st.integers(1, 2),
        st.integers(1, 3),
        st.sampled_from([4, 16, 24, 64, 80, 128]),
    ),
    window=st.sampled_from([0, 1, 5, 40]),
    softcap=st.sampled_from([0.0, 2.0]),
    data=st.data(),
)
def test_attention_of_many_shapes_is_the_plain_one(shape, window, softcap, data):
    attention_is_the_plain_one(shape, window, softcap, data)


@pytest.mark.parametrize("window", [0, 9])
def test_a_query_is_the_same_to_the_bit_one_by_one_and_together(window):
    query, key, value, start, keys, values = case(2, 9, 2, 2, 64, 400, [30, 371])
    together = np.asarray(_attention(query, key, value, start, keys, values, window=window, softcap=0.0)[0])
    for t in range(9):
        new = [x[:, t : t + 1] for x in (query, key, value)]
        out, keys, values = _attention(*new, start + t, keys, values, window=window, softcap=0.0)
        np.testing.assert_array_equal(out[:, 0], together[:, t])


def test_a_donated_cache_is_written_in_place():
    # Copied: JAX up to 0.10.0 may share memory with a NumPy array, and does not write what is shared.
    query, key, value, start, keys, values = map(jnp.array, case(1, 2, 2, 2, 16, 50, [3]))

    def call(cache, query, key, value, start):
        out, *cache = cached_attention(query, key, value, start, *cache, window=0, softcap=0.0)
        return out, tuple(cache)

    program = jax.jit(call, donate_argnums=0).lower((keys, values), query, key, value, start).compile()
    assert "copy" not in program.as_text()
    place = keys.unsafe_buffer_pointer()
    assert program((keys, values), query, key, value, start)[1][0].unsafe_buffer_pointer() == place


def test_a_cache_that_is_still_needed_is_not_written():
    given = tuple(map(jnp.asarray, case(1, 2, 1, 1, 16, 20, [4])))
    before = np.asarray(given[4]).copy()
    jax.jit(lambda *x: cached_attention(*x, window=0, softcap=0.0))(*given)
    np.testing.assert_array_equal(given[4], before)


def test_a_number_that_is_none_reaches_those_who_see_it_alone():
    query, key, value, start, keys, values = case(1, 4, 1, 2, 32, 40, [6])
    value[0, 2] = np.nan
    out = np.asarray(_attention(query, key, value, start, keys, values, window=0, softcap=0.0)[0])
    assert np.isfinite(out[0, :2]).all() and np.isnan(out[0, 2:]).all()


def test_it_is_for_float32_caches_on_one_device():
    keys = jnp.zeros((1, 1, 4, 8))
    here = Place("cpu")
    assert is_native(here, keys) and not is_native(here, keys.astype(jnp.bfloat16))
    assert not is_native(Place("cpu", local=False), keys) and not is_native(Place("tpu"), keys)

"""Temperature, top-k and top-p beside the ones of Transformers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from tiny_hf import hf_processed

from kljudge_jax.core.sampling import Sampling, draw, process_logits
from kljudge_jax.errors import InputError

process = jax.jit(process_logits)


def random_logits(rows=200, vocab=40, seed=0):
    random = np.random.default_rng(seed)
    return (random.uniform(0.3, 6, (rows, 1)) * random.standard_normal((rows, vocab))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (1, 1.0, 0.0),
        (7, 1.0, 0.0),
        (39, 1.0, 0.0),
        (40, 1.0, 0.0),
        (500, 1.0, 0.0),
        (0, 0.9, 0.0),
        (0, 0.3, 0.0),
        (0, 1e-6, 0.0),
        (0, 0.999, 0.0),
        (7, 0.8, 0.0),
        (0, 1.0, 0.05),
        (0, 1.0, 1.0),
        (5, 1.0, 0.1),
        (0, 0.8, 0.02),
        (7, 0.9, 0.3),
    ],
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p, min_p):
    logits = random_logits()
    ours = process(logits, Sampling.create(temperature, top_k, top_p, min_p))
    theirs = hf_processed(logits, temperature, top_k, top_p, min_p)
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_top_k_1_and_a_tiny_top_p_leave_the_likeliest_token():
    logits = random_logits()
    for sampling in (Sampling.create(1.0, top_k=1), Sampling.create(1.0, top_p=1e-9)):
        kept = np.isfinite(process(logits, sampling))
        np.testing.assert_array_equal(kept.sum(axis=-1), 1)
        np.testing.assert_array_equal(kept.argmax(axis=-1), logits.argmax(axis=-1))


def test_tokens_that_are_cut_off_already_stay_so_and_take_no_mass():
    logits = random_logits(vocab=12)
    logits[:, ::2] = -np.inf
    for top_k, top_p in ((0, 1.0), (3, 1.0), (9, 1.0), (0, 0.7), (9, 0.7)):
        ours = np.asarray(process(logits, Sampling.create(0.8, top_k, top_p)))
        few = np.asarray(process(logits[:, 1::2], Sampling.create(0.8, top_k, top_p)))
        assert np.isneginf(ours[:, ::2]).all()
        np.testing.assert_array_equal(ours[:, 1::2], few)


def test_tokens_that_tie_with_the_last_kept_stay():
    logits = jnp.array([2.0, 1.0, 1.0, 0.0])
    assert np.isfinite(process_logits(logits, Sampling.create(1.0, top_k=2))).tolist() == [True, True, True, False]
    assert np.isfinite(process_logits(logits, Sampling.create(1.0, top_p=0.5))).tolist() == [True, False, False, False]
    assert np.isfinite(process_logits(logits, Sampling.create(1.0, top_p=0.7))).tolist() == [True, True, True, False]


def test_the_lowest_temperature_leaves_numbers():
    logits = 50 * random_logits()
    coldest = np.asarray(process(logits, Sampling.create(1e-6)))
    assert np.isfinite(coldest).all()
    np.testing.assert_allclose(jax.nn.softmax(coldest)[np.arange(200), logits.argmax(-1)], 1.0)


@pytest.mark.parametrize("numbers", [(1.0,), (1.0, 0, 1.0, 0.5)])
def test_a_number_that_is_none_is_not_hidden(numbers):
    logits = jnp.array([0.0, jnp.nan, 1.0, -1.0])
    assert np.isnan(process_logits(logits, Sampling.create(*numbers))).any()


def test_greedy_changes_nothing_and_draws_the_lowest_id_of_a_tie():
    sampling = Sampling.create(0.0, top_k=1, top_p=0.1)
    logits = jnp.array([0.0, 5.0, 5.0])
    assert process_logits(logits, sampling) is logits
    assert draw(jax.random.key(0), logits, sampling) == 1


def test_draws_follow_the_distribution():
    sampling = Sampling.create(0.7, top_k=6, top_p=0.85)
    logits = process(np.float32([1.0, 0.3, -0.5, 2.0, 0.3, 1.4, -3.0, 0.9, 0.0]), sampling)
    keys = jax.random.split(jax.random.key(2), 20_000)
    tokens = jax.vmap(draw, (0, None, None))(keys, logits, sampling)
    counts = np.bincount(tokens, minlength=9)
    kept = np.isfinite(logits)
    assert kept.sum() == 4
    assert counts[~kept].sum() == 0
    expected = scipy.special.softmax(np.asarray(logits, np.float64)[kept])
    assert scipy.stats.chisquare(counts[kept], expected * len(tokens)).pvalue > 1e-4


def test_changing_the_numbers_compiles_nothing():
    once = jax.jit(chex.assert_max_traces(process_logits, n=1))
    for temperature, top_k, top_p in ((0.5, 0, 0.5), (2, 3, 1.0), (1.0, 40, 0.2)):
        logits = random_logits()
        found = once(logits, Sampling.create(temperature, top_k, top_p))
        chex.assert_equal_shape([logits, found])
        chex.assert_type(found, jnp.float32)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-0.1, 0, 1.0), "temperature"),
        ((float("inf"), 0, 1.0), "temperature"),
        ((float("nan"), 0, 1.0), "temperature"),
        ((1e-9, 0, 1.0), "temperature"),  # a float32 quotient would overflow
        (("1", 0, 1.0), "temperature"),
        ((True, 0, 1.0), "temperature"),
        ((1.0, -1, 1.0), "top_k"),
        ((1.0, 2.5, 1.0), "top_k"),
        ((1.0, 2**31, 1.0), "top_k"),
        ((1.0, 0, 1.0, -0.1), "min_p"),
        ((1.0, 0, 1.0, 1.1), "min_p"),
        ((1.0, 0, 1.0, float("nan")), "min_p"),
        ((1.0, 0, 0.0), "top_p"),
        ((1.0, 0, 1e-60), "top_p"),  # 0 in float32
        ((1.0, 0, 1.1), "top_p"),
        ((1.0, 0, float("nan")), "top_p"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        Sampling.create(*numbers)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.7), (7, 0.6), (1, 0.5), (100, 0.999), (3, 1e-6)])
def test_a_split_vocabulary_is_cut_where_a_sorted_one_is(top_k, top_p):
    logits = np.random.default_rng(1).normal(0, 3, (50, 40)).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # ties
    logits[:, 7] = -np.inf
    sampling = Sampling.create(0.7, top_k, top_p)
    split = sampling.over_split_vocabulary()
    np.testing.assert_array_equal(process_logits(logits, split), process_logits(logits, sampling))

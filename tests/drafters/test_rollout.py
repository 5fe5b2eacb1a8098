"""A chain that knows some tokens draws as one does whose logits are -inf at the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.core.protocols import Context, Features, Request
from kljudge_jax.core.sampling import Sampling, process_logits
from kljudge_jax.drafters.rollout import Chain, roll_out

VOCAB, KNOWN, BATCH, LENGTH = 23, np.array([1, 2, 5, 8, 9, 13, 14, 20, 22], np.int32), 3, 4
TABLE = np.random.default_rng(0).normal(size=(VOCAB, len(KNOWN))).astype(np.float32) * 2
REQUESTS = {"fixed": Request(LENGTH, False), "shortened": Request(LENGTH, False, shortens=True)}


def spread(compact):
    return jnp.full((*compact.shape[:-1], VOCAB), -jnp.inf).at[..., KNOWN].set(compact)


def chains():
    """One over the tokens that it knows, and one over all, which say the same: logits follow the last token."""

    def step(token, state):
        return Features(jnp.asarray(TABLE)[token][:, None]), state + 1

    compact = Chain(step, lambda features: features.hidden, jnp.asarray(KNOWN), spread)
    return compact, Chain(step, lambda features: spread(features.hidden))


def drafted(chain, sampling, request, seed=0, wanted=LENGTH):
    last = Features(jnp.asarray(TABLE)[jnp.arange(BATCH)][:, None])
    zeros = jnp.zeros((BATCH,), jnp.int32)
    context = Context(
        jnp.zeros((BATCH, 8), jnp.int32), zeros, zeros + wanted, jax.random.split(jax.random.key(seed), BATCH), sampling
    )
    return jax.jit(lambda: roll_out(chain, zeros, last, context, request)[0])()


@pytest.mark.parametrize("name", REQUESTS)
def test_a_greedy_draft_is_the_same(name):
    ours, theirs = (drafted(chain, Sampling.create(), REQUESTS[name]) for chain in chains())
    for field in ("tokens", "count", "raw_logits"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)
    assert ours.logits is None and ours.raw_logits.shape == (BATCH, LENGTH, VOCAB)
    assert set(np.asarray(ours.tokens).ravel()) <= set(KNOWN.tolist())


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("asked", [{}, {"top_k": 3}, {"top_k": 15}, {"top_p": 0.8}, {"min_p": 0.2, "top_p": 0.9}])
def test_a_drawn_draft_is_of_the_distribution_of_all_tokens(name, asked):
    sampling = Sampling.create(0.7, **asked)
    draft = drafted(chains()[0], sampling, REQUESTS[name])
    tokens, raw = np.asarray(draft.tokens), np.asarray(draft.raw_logits)
    before = np.concatenate([np.arange(BATCH)[:, None], tokens[:, :-1]], axis=1)
    np.testing.assert_allclose(raw[..., KNOWN], TABLE[before], rtol=1e-6)
    assert np.isneginf(np.delete(raw, KNOWN, axis=-1)).all()
    np.testing.assert_allclose(draft.logits, process_logits(draft.raw_logits, sampling), rtol=1e-5)
    drawn = np.take_along_axis(np.asarray(draft.logits), tokens[..., None], axis=-1)
    assert np.isfinite(drawn).all()


def test_first_tokens_are_drawn_as_often_as_their_probabilities_say():
    sampling, chain = Sampling.create(1.0), chains()[0]
    n = 4000
    last = Features(jnp.broadcast_to(jnp.asarray(TABLE)[:1, None], (n, 1, len(KNOWN))))
    zeros = jnp.zeros((n,), jnp.int32)
    keys = jax.random.split(jax.random.key(1), n)
    context = Context(jnp.zeros((n, 8), jnp.int32), zeros, zeros + 1, keys, sampling)
    tokens = np.asarray(roll_out(chain, zeros, last, context, Request(1, False))[0].tokens)[:, 0]
    expected = n * np.asarray(jax.nn.softmax(TABLE[0]))
    found = np.array([(tokens == token).sum() for token in KNOWN])
    assert found.sum() == n
    # The 99.99 % point of chi-square with 8 degrees of freedom.
    assert ((found - expected) ** 2 / expected).sum() < 31.8


def test_a_shortened_draft_keeps_its_counts():
    ours, theirs = (drafted(chain, Sampling.create(), REQUESTS["shortened"], wanted=2) for chain in chains())
    np.testing.assert_array_equal(ours.count, theirs.count)
    assert (np.asarray(ours.count) == 2).all()
    sure = Request(LENGTH, False, shortens=True, confidence=0.5)
    ours, theirs = (drafted(chain, Sampling.create(), sure) for chain in chains())
    np.testing.assert_array_equal(ours.count, theirs.count)
    assert np.asarray(ours.count).min() < LENGTH

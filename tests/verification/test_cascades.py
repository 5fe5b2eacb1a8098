"""Speculative cascades: what they draw, and their strict ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.cascades import mixture, near_tokens
from random_cases import KINDS, as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases, rows
from transcription import softmax

import kljudge_jax as kj
from kljudge_jax.verification import CascadeOpt, CascadeToken, Lenience, SpeculativeSampling

UNTIED = [kind for kind in KINDS if kind != "ties"]


def emitted(rule, p, q):
    """The distribution of the first token where one is drafted from q: every draft, and the token after it."""
    vocab = p.shape[-1]
    logits = [np.broadcast_to(x, (vocab, 1, vocab)) for x in (np.log(q), np.log(p))]
    target = np.concatenate([logits[1], np.zeros((vocab, 1, vocab))], axis=1)
    ids, ones = np.arange(vocab)[:, None], np.ones(vocab)
    inputs = as_inputs(ids, ones, logits[0], target, logits[0], target, False)
    distributions, corrections = lengths_and_corrections(rule, inputs)
    return q * distributions[:, 1] + (q * distributions[:, 0]) @ corrections[:, 0]


@pytest.mark.parametrize("alpha", [-1.5, 0.0, 0.4, 0.8, 1.0])
def test_a_token_that_is_drafted_follows_the_mixture(alpha):
    """By enumeration: the target's own below -1, the draft's at 1, and of OPT one of the two."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        p, q = softmax(1.5 * rng.normal(size=(2, 5)))
        near = near_tokens(p, alpha)
        np.testing.assert_allclose(emitted(CascadeToken(alpha), p, q), mixture(p, q, near), atol=2e-6)
        follows = q.max() >= p.max() - alpha * np.abs(p - q).sum() / 2
        np.testing.assert_allclose(emitted(CascadeOpt(alpha), p, q), q if follows else p, atol=2e-6)


def test_the_strict_ends():
    for greedy in (True, False):
        inputs = random_cases(2, greedy)
        strict = lengths_and_corrections(SpeculativeSampling(), inputs)
        for rule in (CascadeOpt(-np.inf), CascadeToken(-1.0)):
            found = lengths_and_corrections(rule, inputs)
            np.testing.assert_allclose(found[0], strict[0], atol=1e-6)
            for case, ours, theirs in zip(rows(inputs), found[1], strict[1], strict=True):
                np.testing.assert_allclose(ours[: case[1] + 1], theirs[: case[1] + 1], atol=1e-4)
    inputs = random_cases(3, True, kinds=UNTIED)
    found, strict = (expected_lengths(rule, inputs) for rule in (CascadeToken(0.0), SpeculativeSampling()))
    np.testing.assert_array_equal(found, strict)


def test_the_relaxed_ends_keep_everything():
    for greedy in (True, False):
        # A draft that is no distribution of its own is surer than any.
        inputs = random_cases(4, greedy)
        for rule in (CascadeOpt(1.001), CascadeToken(1.0)):
            np.testing.assert_allclose(expected_lengths(rule, inputs), inputs.draft_count, atol=1e-5)


def test_accepts_more_as_it_is_relaxed():
    for greedy in (True, False):
        assert never_shorter([CascadeOpt(alpha) for alpha in (-10.0, -0.3, 0.0, 0.3, 1.0)], greedy)
    rules = [CascadeToken(alpha) for alpha in (-1.0, 0.0, 0.2, 0.7, 0.99)]
    assert never_shorter(rules, True)
    # When sampling a token outside A passes less often the more there are inside: on average alone, and from A on that
    # has one token; the strict rule keeps more than that.
    inputs = random_cases(99, False)
    change = np.diff([expected_lengths(rule, inputs).mean() for rule in rules])
    assert change[0] < 0 and (change[1:] > 0).all()


def test_tok_is_lenience_when_greedy():
    for seed, alpha in enumerate((0.1, 0.5, 0.9)):
        inputs = random_cases(seed, True)
        found, lenient = (expected_lengths(rule, inputs) for rule in (CascadeToken(alpha), Lenience(1 - alpha)))
        np.testing.assert_array_equal(found, lenient)


def test_a_token_of_no_probability_is_kept_by_no_mixture_but_a_wide_one():
    """Under p it is impossible, and outside A for all but alpha = 1."""
    target, draft = jnp.array([[[0.0, -jnp.inf], [0.0, 0.0]]]), jnp.array([[[-jnp.inf, 0.0]]])
    inputs = as_inputs([[1]], [1], draft, target, draft, target, False)
    for alpha, kept in ((-1.0, 0), (0.5, 0), (0.999, 0), (1.0, 1)):
        assert expected_lengths(CascadeToken(alpha), inputs)[0] == kept
    correction = jax.tree.map(lambda x: x[0] if x.ndim else x, inputs)
    np.testing.assert_array_equal(CascadeToken(0.5).correction(correction, jnp.int32(0)), [1.0, 0.0])


def test_a_draft_without_a_distribution_would_always_be_followed_and_is_refused(pair):
    with pytest.raises(kj.InputError, match=r"CascadeOpt reads the draft's largest .*, and PromptLookup has no dist"):
        kj.generate(pair, [[1, 2]], verifier="cascade_opt:0.3", drafter="lookup:2", max_new_tokens=4)

"""Eased draws: cases that a source tests, their strict ends and their order."""

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases

from kljudge_jax.verification import EARS, EntropyVerify, SpeculativeSampling


def test_the_released_test_cases_of_entropy_verify():
    """Three positions whose draws of 0.7, 0.6 and 0.5 its own unit tests fix, and what becomes of each."""
    original = np.array([[0.8, 0.19, 0.01], [0.09, 0.9, 0.01], [0.9, 0.09, 0.01]])
    target = np.array([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0]])
    draft = np.array([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    tokens, draws, kept = [1, 0, 2], [0.7, 0.6, 0.5], [False, False, False]
    with np.errstate(divide="ignore"):
        p, q, raw = (np.log(x)[:, None] for x in (target, draft, original))
    p, raw = (np.concatenate([x, np.zeros((3, 1, 3))], axis=1) for x in (p, raw))
    inputs = as_inputs(np.array(tokens)[:, None], [1] * 3, q, p, q, raw, False)
    accepted = expected_lengths(EntropyVerify(), inputs)
    assert (np.array(draws) < accepted).tolist() == kept
    # Nearly uniform: with their draw of 0.7 the bar is 0.7 exp(-0.4 ln 3) = 0.45, and 0.33 / 0.4 passes it.
    flat = np.log([[[0.35, 0.33, 0.32], [1 / 3] * 3]])
    inputs = as_inputs([[1]], [1], np.log([[[0.4, 0.4, 0.2]]]), flat, np.log([[[0.4, 0.4, 0.2]]]), flat, False)
    assert expected_lengths(EntropyVerify(), inputs)[0] > 0.7


@pytest.mark.parametrize("rule", [EntropyVerify(1.0, 0.0), EARS(0.0)])
def test_the_strict_end(rule):
    for greedy in (True, False):
        inputs = random_cases(1, greedy)
        found, strict = (lengths_and_corrections(r, inputs) for r in (rule, SpeculativeSampling()))
        np.testing.assert_allclose(found[0], strict[0], atol=1e-6)


@pytest.mark.parametrize("rule", [EntropyVerify(0.1, 5.0), EARS(1.0)])
def test_greedy_is_strict_however_relaxed(rule):
    inputs = random_cases(2, True)
    found, strict = (lengths_and_corrections(r, inputs) for r in (rule, SpeculativeSampling()))
    np.testing.assert_array_equal(found[0], strict[0])


def test_accepts_more_as_it_is_relaxed():
    assert never_shorter([EntropyVerify(threshold) for threshold in (1.0, 0.9, 0.3, 0.01)], False)
    assert never_shorter([EntropyVerify(1.0, alpha) for alpha in (0.0, 0.4, 2.0, 1e6)], False)
    assert never_shorter([EARS(tolerance) for tolerance in (0.0, 0.2, 1.0)], False)


@pytest.mark.parametrize("rule", [EntropyVerify(1e-30, 1e30), EARS(1.0)])
def test_a_token_of_no_probability_never_passes(rule):
    """However far the bar is lowered, also to 0 in float32."""
    target = np.array([[[0.0, 0.0, -np.inf], [0.0, 0.0, 0.0]]])
    draft = np.zeros((1, 1, 3))
    inputs = as_inputs([[2]], [1], draft, target, draft, target, False)
    assert expected_lengths(rule, inputs)[0] == 0

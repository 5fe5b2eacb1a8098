"""The ensemble: what is drafted follows the mixture."""

import itertools

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases
from transcription import softmax

from kljudge_jax.verification import AcceptAll, Ensemble, SpeculativeSampling


def test_a_drafted_token_follows_the_mixture():
    rng = np.random.default_rng(0)
    p, q = 2 * rng.normal(size=(1, 2, 5)), 2 * rng.normal(size=(1, 1, 5))
    found = np.zeros(5)
    for token, weight in itertools.product(range(5), [0.3]):
        inputs = as_inputs([[token]], [1], q, p, q, p, False)
        distribution, correction = lengths_and_corrections(Ensemble(weight), inputs)
        drawn = softmax(q[0, 0])[token]
        found += drawn * (distribution[0, 1] * np.eye(5)[token] + distribution[0, 0] * correction[0, 0])
    np.testing.assert_allclose(found, 0.3 * softmax(p[0, 0]) + 0.7 * softmax(q[0, 0]), atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_the_ends_of_the_range(greedy):
    inputs = random_cases(1, greedy)
    strict, target_alone = (expected_lengths(rule, inputs) for rule in (SpeculativeSampling(), Ensemble(1.0)))
    np.testing.assert_allclose(target_alone, strict, atol=1e-6)
    if not greedy:
        everything, draft_alone = (expected_lengths(rule, inputs) for rule in (AcceptAll(), Ensemble(0.0)))
        np.testing.assert_allclose(draft_alone, everything, atol=1e-6)
        assert never_shorter([Ensemble(weight) for weight in (1.0, 0.7, 0.3, 0.0)], greedy)


def test_all_weight_on_the_target_is_the_strict_rule_where_probabilities_tie():
    target, draft = np.float32([[0.0, 1e-8], [0.0, 0.0]]), np.float32([[5.0, 0.0]])
    inputs = as_inputs([[0]], [1], draft[None], target[None], draft[None], target[None], True)
    assert expected_lengths(SpeculativeSampling(), inputs)[0] == expected_lengths(Ensemble(1.0), inputs)[0] == 0

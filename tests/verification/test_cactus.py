"""Cactus at p(d) = 1 and 0, and its strict end."""

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases

from kljudge_jax.verification import Cactus, SpeculativeSampling


@pytest.mark.parametrize("greedy", [True, False])
def test_a_delta_of_zero_is_the_strict_rule(greedy):
    inputs = random_cases(1, greedy)
    found, strict = (expected_lengths(rule, inputs) for rule in (Cactus(0.0), SpeculativeSampling()))
    np.testing.assert_allclose(found, strict, atol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_delta_rises(greedy):
    assert never_shorter([Cactus(delta) for delta in (0.0, 0.01, 0.1, 1.0, 10.0)], greedy)


def test_a_certain_token_and_an_impossible_one():
    certain = np.array([[[0.0, -np.inf, -np.inf], [0.0, 0.0, 0.0]]])
    uniform = np.zeros((1, 1, 3))
    for token, length in ((0, 1.0), (1, 0.0)):
        inputs = as_inputs([[token]], [1], uniform, certain, uniform, certain, False)
        distribution, correction = lengths_and_corrections(Cactus(0.5), inputs)
        np.testing.assert_array_equal(distribution[0], [1 - length, length])
        np.testing.assert_array_equal(correction[0, 0], [1.0, 0.0, 0.0])

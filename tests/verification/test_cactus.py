"""Cactus against its definition, at p(d) = 1 and 0, and its strict end."""

import math

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases
from transcription import check, order

from kljudge_jax.verification import Cactus, SpeculativeSampling


def raised(p, token, delta):
    """h: the target raised at the token."""
    g = min(1.0, p[token] + math.sqrt(2 * delta * p[token] * (1 - p[token])))
    h = p * ((1 - g) / (1 - p[token]) if p[token] < 1 else 0.0)
    h[token] = g
    return h


def cactus(delta):
    def accept(position):
        token = position.token
        if position.greedy:
            h = raised(position.raw_p, token, delta)
            best = np.sort(h)
            if order(position.raw_logits)[0] == token:
                return 1.0, 1.0
            return float(int(np.argmax(h)) == token), best[-1] - best[-2]
        g, q = raised(position.p, token, delta)[token], position.q[token]
        return (0.0 if g == 0 else 1.0 if q == 0 else min(1.0, g / q)), 1.0

    return accept


def residual(position):
    return np.maximum(raised(position.p, position.token, 0.15) - position.q, 0)


def test_agrees_with_a_float64_transcription():
    check(Cactus(0.15), cactus(0.15), residual)


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

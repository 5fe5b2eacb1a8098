"""The rules by rank against their definitions, their strict ends, and ties."""

import numpy as np
import pytest
from random_cases import KINDS, as_inputs, expected_lengths, never_shorter, random_cases
from transcription import above, check, order, target

from kljudge_jax.verification import MarginAcceptance, RelaxedThinking, SpeculativeSampling, TopKAcceptance


def top_k(k):
    return lambda position: (float(position.token in order(position.raw_logits)[:k]), 1.0)


def thinking(k, delta):
    def accept(position):
        gap = position.raw_p.max() - position.raw_p[position.token]
        far, near = above(gap, delta)
        return float(not far and position.token in order(position.raw_logits)[:k]), near if gap > 0 else 1.0

    return accept


def margin(threshold):
    def accept(position):
        first, second = order(position.raw_logits)[:2]
        best = position.raw_logits[first]
        passes, near = above(position.raw_logits[second], threshold * best)
        if position.token == second and best > 0 and passes:
            return 1.0, near
        return position.strict, near

    return accept


def test_top_k_agrees_with_a_float64_transcription():
    check(TopKAcceptance(2), top_k(2), target)


def test_thinking_agrees_with_a_float64_transcription():
    check(RelaxedThinking(3, 0.25), thinking(3, 0.25), target)


def test_margin_agrees_with_a_float64_transcription():
    check(MarginAcceptance(0.7), margin(0.7), kinds=[kind for kind in KINDS if "one_hot" not in kind])


@pytest.mark.parametrize("rule", [TopKAcceptance(1), RelaxedThinking(1), MarginAcceptance(1.0)])
def test_the_strict_end_when_greedy(rule):
    inputs = random_cases(2, True)
    np.testing.assert_array_equal(expected_lengths(rule, inputs), expected_lengths(SpeculativeSampling(), inputs))


def test_margin_is_lossless_at_its_strict_end_when_sampling():
    inputs = random_cases(2, False)
    found, strict = (expected_lengths(rule, inputs) for rule in (MarginAcceptance(1.0), SpeculativeSampling()))
    np.testing.assert_allclose(found, strict, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_it_is_relaxed(greedy):
    assert never_shorter([TopKAcceptance(k) for k in (1, 2, 3, 5)], greedy)
    assert never_shorter([RelaxedThinking(5, delta) for delta in (0.0, 0.1, 0.5, 1.0)], greedy)
    assert never_shorter([MarginAcceptance(threshold) for threshold in (1.0, 0.9, 0.5, 0.0)], greedy)


def test_above_the_confidence_the_strict_rule_decides_and_corrects():
    for greedy in (True, False):
        inputs = random_cases(3, greedy)
        found, strict = (expected_lengths(rule, inputs) for rule in (TopKAcceptance(5, 0.0), SpeculativeSampling()))
        np.testing.assert_allclose(found, strict, atol=1e-6)

    def accept(position):
        sure, near = above(position.raw_p.max(), 0.6)
        return (position.strict, near) if sure else (top_k(2)(position)[0], near)

    def residual(position):
        return np.maximum(position.p - position.q, 0) if position.raw_p.max() > 0.6 else position.p

    check(TopKAcceptance(2, 0.6), accept, residual)


def test_the_edge_of_thinking_passes():
    """p(d) = max p - delta, to the last bit: a tie and a delta of 0."""
    level = np.zeros((2, 2), np.float32)
    inputs = as_inputs([[1]], [1], level[None, :1], level[None], level[None, :1], level[None], True)
    assert expected_lengths(RelaxedThinking(2, 0.0), inputs)[0] == 1
    assert expected_lengths(RelaxedThinking(1, 0.0), inputs)[0] == 0


def test_the_edge_of_the_margin_does_not_pass():
    target = np.float32([[4.0, 2.0], [0.0, 0.0]])
    inputs = as_inputs([[1]], [1], target[None, :1], target[None], target[None, :1], target[None], True)
    assert expected_lengths(MarginAcceptance(0.5), inputs)[0] == 0
    assert expected_lengths(MarginAcceptance(0.49), inputs)[0] == 1

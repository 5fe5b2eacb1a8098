"""Fuzzy acceptance and R-fuzzy: their ends, and what lies between."""

import math

import numpy as np
import pytest
from oracles.divergence import MEASURES
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases, rows
from transcription import softmax

from kljudge_jax.verification import DivergenceThreshold, KLJudge, RelaxedFuzzy, SpeculativeSampling


def test_above_the_confidence_the_strict_rule_decides():
    inputs = random_cases(1, False)
    masked = DivergenceThreshold("tv", 1.0, confidence=0.0)
    found, strict = (expected_lengths(rule, inputs) for rule in (masked, SpeculativeSampling()))
    np.testing.assert_allclose(found, strict, atol=1e-6)


def test_nothing_passes_below_zero_and_the_target_is_left():
    inputs = random_cases(1, False)
    rule = DivergenceThreshold("js", -1.0)
    assert not expected_lengths(rule, inputs).any()
    for case, correction in zip(rows(inputs), lengths_and_corrections(rule, inputs)[1], strict=True):
        np.testing.assert_allclose(correction[0], softmax(case[3][0]), atol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_the_threshold_rises(greedy):
    assert never_shorter([DivergenceThreshold("tv", threshold) for threshold in (-1.0, 0.0, 0.1, 0.5, 1.0)], greedy)


def test_equal_models_pass_a_threshold_of_zero_and_disjoint_ones_are_as_far_as_can_be():
    uniform = np.zeros((1, 2, 3))
    inputs = as_inputs([[0]], [1], uniform[:, :1], uniform, uniform[:, :1], uniform, True)
    for divergence in MEASURES:
        assert expected_lengths(DivergenceThreshold(divergence, 0.0), inputs) == 1
    apart = np.full((1, 2, 3), -np.inf)
    apart[:, :, 1] = 0
    draft = np.where(np.arange(3) == 0, 0.0, -np.inf)[None, None]
    inputs = as_inputs([[0]], [1], draft, apart, draft, apart, True)
    for divergence, largest in {"js": math.log(2), "tv": 1.0, "kl_target_draft": math.inf}.items():
        assert expected_lengths(DivergenceThreshold(divergence, largest + 1e-6), inputs) == 1
        if math.isfinite(largest):
            assert expected_lengths(DivergenceThreshold(divergence, largest - 1e-6), inputs) == 0
    assert expected_lengths(DivergenceThreshold("kl_target_draft", 1e30), inputs) == 0


def test_relaxed_fuzzy_is_strict_at_0_and_keeps_more_above():
    for greedy in (True, False):
        inputs = random_cases(5, greedy)
        strict = lengths_and_corrections(SpeculativeSampling(), inputs)
        for divergence in MEASURES:
            found = lengths_and_corrections(RelaxedFuzzy(0.0, divergence), inputs)
            np.testing.assert_allclose(found[0], strict[0], atol=1e-6)
        assert never_shorter([RelaxedFuzzy(threshold) for threshold in (0.0, 0.05, 0.2, 1.0)], greedy)


def test_relaxed_fuzzy_by_kl_is_the_kl_judge():
    for greedy in (True, False):
        inputs = random_cases(6, greedy)
        rules = RelaxedFuzzy(0.4, "kl_target_draft", 0.9), KLJudge(0.4)
        np.testing.assert_array_equal(*(expected_lengths(rule, inputs) for rule in rules))

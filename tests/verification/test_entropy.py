"""The entropy rules against their definitions; FLy's window at the draft's end."""

import dataclasses
import math

import numpy as np
import pytest
from random_cases import VOCAB, as_inputs, expected_lengths, never_shorter, random_cases
from transcription import above, check, entropy

from kljudge_jax.verification import EntropyThreshold, FLy, SpeculativeSampling


def unsure(threshold, model):
    def accept(position):
        if model == "target":
            passes, near = above(entropy(position.raw_p), threshold)
        else:
            passes, near = above(threshold, entropy(position.raw_q))
        return (1.0 if passes else position.strict), near

    return accept


def fly(threshold, window):
    def accept(position):
        passes, near = above(entropy(position.raw_p) / math.log(len(position.raw_p)), threshold)
        following = range(position.i + 1, min(position.i + window + 1, position.count))
        alone = all(int(np.argmax(position.all_raw_p[j])) == position.tokens[j] for j in following)
        return (1.0 if passes and alone else position.strict), near

    return accept


@pytest.mark.parametrize("threshold, model", [(0.8, "target"), (0.7, "draft")])
def test_entropy_agrees_with_a_float64_transcription(threshold, model):
    check(EntropyThreshold(threshold, model), unsure(threshold, model))


@pytest.mark.parametrize("window", [0, 1, 6])
def test_fly_agrees_with_a_float64_transcription(window):
    check(FLy(0.45, window), fly(0.45, window))


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("rule", [EntropyThreshold(math.log(VOCAB)), EntropyThreshold(0.0, "draft"), FLy(1.0)])
def test_the_strict_end(rule, greedy):
    inputs = random_cases(1, greedy)
    found, strict = (expected_lengths(r, inputs) for r in (rule, SpeculativeSampling()))
    np.testing.assert_allclose(found, strict, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_it_is_relaxed(greedy):
    assert never_shorter([EntropyThreshold(threshold) for threshold in (2.0, 1.0, 0.3, -1.0)], greedy)
    assert never_shorter([EntropyThreshold(threshold, "draft") for threshold in (0.0, 0.3, 1.0, 2.0)], greedy)
    assert never_shorter([FLy(threshold, 1) for threshold in (1.0, 0.5, 0.2, -1.0)], greedy)
    assert never_shorter([FLy(0.2, window) for window in (6, 2, 1, 0)], greedy)


def test_flys_window_is_cut_short_at_the_drafts_end():
    target = np.zeros((1, 4, 3))
    target[:, :, 0] = 0.5
    draft = target[:, :3]

    def length(tokens, window, count=3):
        inputs = as_inputs([tokens], [count], draft, target, draft, target, True)
        return expected_lengths(FLy(0.3, window), inputs)[0]

    assert length([0, 0, 1], 6) == 3
    assert length([1, 0, 0], 6) == 3
    assert length([1, 0, 1], 6) == 0
    assert length([1, 0, 1], 1) == 3
    assert length([1, 0, 1], 6, count=2) == 2


@pytest.mark.parametrize("vocab", [2, 30, 50, 1000, 49152, 151936])
@pytest.mark.parametrize("rule", [EntropyThreshold, FLy])
def test_nothing_is_less_sure_than_the_strict_end_allows(rule, vocab):
    """A mismatch under uniform logits, whose entropy float32 can put above ln V."""
    level = np.zeros((2, vocab), np.float32)
    inputs = as_inputs([[1]], [1], level[None, :1], level[None], level[None, :1], level[None], True)
    strict = rule(math.log(vocab) if rule is EntropyThreshold else 1.0)
    assert expected_lengths(strict, inputs)[0] == 0
    assert expected_lengths(dataclasses.replace(strict, threshold=strict.threshold - 1e-3), inputs)[0] == 1

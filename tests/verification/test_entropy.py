"""The entropy rules against their definitions; FLy's window, its draws, and its place in the draft."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import (
    VOCAB,
    as_inputs,
    batch_axes,
    expected_lengths,
    lengths_and_corrections,
    never_shorter,
    random_cases,
    rows,
)
from transcription import above, check, entropy, softmax

from kljudge_jax.verification import EntropyThreshold, FLy, SpeculativeSampling
from kljudge_jax.verification.rule import Odds


def unsure(threshold, model):
    def accept(position):
        if model == "target":
            passes, near = above(entropy(position.raw_p), threshold)
        else:
            passes, near = above(threshold, entropy(position.raw_q))
        return (1.0 if passes else position.strict), near

    return accept


def full(threshold, window):
    """The gate of entropy="full", which asks no draw."""

    def accept(position):
        passes, near = above(entropy(position.raw_p) / math.log(len(position.raw_p)), threshold)
        following = range(position.i + 1, min(position.i + window + 1, position.count))
        alone = all(int(np.argmax(position.all_raw_p[j])) == position.tokens[j] for j in following)
        return (1.0 if passes and alone else position.strict), near

    return accept


def gates(case, threshold, window, length):
    """Of one sequence: the window, which tokens may pass, and how near an entropy is to the threshold."""
    tokens, count, _, _, _, raw_target = case
    w, passes, near = min(window, length - 1), [], 1.0
    for i in range(count):
        p = softmax(raw_target[i])
        three = sorted(p, reverse=True)[:3]
        h = -sum(a * math.log(a) for a in three if a > 0)
        near = min(near, abs(h - threshold))
        passes.append(h >= threshold and p[tokens[i]] > 0 and i + w < count)
    return w, passes, near


def strict_probabilities(case, greedy):
    tokens, count, draft, target, _, _ = case
    found = []
    for i in range(count):
        p, q = softmax(target[i])[tokens[i]], softmax(draft[i])[tokens[i]]
        if greedy:
            found.append(float(np.argmax(target[i]) == tokens[i]))
        else:
            found.append(0.0 if p == 0 else 1.0 if q == 0 else min(1.0, p / q))
    return found


def decided(strict, passes, w):
    """How many tokens are kept, and which of them though the strict rule rejects them."""
    marks = []
    for i, ours in enumerate(strict):
        if not (ours or (passes[i] and all(strict[i + 1 : i + w + 1]))):
            break
        marks.append(not ours)
    return len(marks), marks


def lone_mismatches(greedy, length=8):
    """The same random cases, their drafts the target's own tokens but for one or two near the beginning."""
    inputs = random_cases(4, greedy, length=length, kinds=("close", "far", "holes", "ties"))
    random = np.random.default_rng(4)
    tokens, counts = np.array(inputs.draft_tokens), np.array(inputs.draft_count)
    best = np.argmax(np.nan_to_num(np.asarray(inputs.target_logits), neginf=-1e9), axis=-1)
    for case, count in enumerate(counts):
        others = tokens[case].copy()
        tokens[case, :count] = best[case, :count]
        for at in random.integers(0, 3, size=random.choice([1, 1, 1, 2])):
            if at < count:
                tokens[case, at] = others[at]
    return dataclasses.replace(inputs, draft_tokens=jnp.asarray(tokens))


def check_fly(rule, threshold, window, greedy, inputs):
    """Every pattern of strict decisions, one by one, with its probability; corrections as the strict rule's."""
    length = inputs.draft_tokens.shape[1]
    distributions, corrections = lengths_and_corrections(rule, inputs)
    strict_ones = lengths_and_corrections(SpeculativeSampling(), inputs)[1]
    np.testing.assert_array_equal(corrections, strict_ones)
    left_out = longer = 0
    for case, found in zip(rows(inputs), distributions, strict=True):
        count = case[1]
        w, passes, near = gates(case, threshold, window, length)
        if near < 1e-4:
            left_out += 1
            continue
        chances, expected = strict_probabilities(case, greedy), np.zeros(length + 1)
        for pattern in itertools.product((False, True), repeat=count):
            chance = np.prod([s if ours else 1 - s for s, ours in zip(chances, pattern, strict=True)])
            if chance > 0:
                expected[decided(pattern, passes, w)[0]] += chance
        np.testing.assert_allclose(found, expected, atol=2e-5)
        longer += expected[-1] > np.prod(chances) + 1e-3
    assert left_out < len(distributions) / 10
    return longer


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("seed, vocab, length", [(0, 5, 4), (1, 5, 4), (2, 2, 4), (3, 7, 8)])
@pytest.mark.parametrize("threshold, window", [(0.3, 6), (0.75, 1), (0.6, 0), (0.5, 2)])
def test_fly_agrees_with_a_float64_transcription(threshold, window, seed, vocab, length, greedy):
    inputs = random_cases(seed, greedy, vocab=vocab, length=length)
    assert check_fly(FLy(threshold, window), threshold, window, greedy, inputs) or (vocab, window) in ((2, 1), (7, 6))


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("window", [6, 7, 4])
def test_fly_saves_lone_mismatches_of_long_drafts(window, greedy):
    assert check_fly(FLy(0.3, window), 0.3, window, greedy, lone_mismatches(greedy)) > 3


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("window", [6, 2, 0])
def test_fly_decides_on_the_strict_rules_own_draws(window, greedy):
    inputs, length = lone_mismatches(greedy), 8
    uniforms = jax.random.uniform(jax.random.key(3), inputs.draft_tokens.shape)
    rule = FLy(0.3, window)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, batch_axes(inputs)))
    def run(draws, case):
        return rule.accept(draws, case, Odds.of(case))

    accepted, relaxed = map(np.asarray, run(uniforms, inputs))
    compared = seen = 0
    for case, draws, n, marks in zip(rows(inputs), np.asarray(uniforms), accepted, relaxed, strict=True):
        w, passes, near = gates(case, 0.3, window, length)
        chances = strict_probabilities(case, greedy)
        if near < 1e-4 or any(abs(s - u) < 1e-5 for s, u in zip(chances, draws, strict=False)):
            continue
        expected, marked = decided([u < s for s, u in zip(chances, draws, strict=False)], passes, w)
        assert (n, list(marks)) == (expected, marked + [False] * (length - expected))
        compared, seen = compared + 1, seen + any(marked)
    assert compared > 300 and seen > 5


@pytest.mark.parametrize("threshold, model", [(0.8, "target"), (0.7, "draft")])
def test_entropy_agrees_with_a_float64_transcription(threshold, model):
    check(EntropyThreshold(threshold, model), unsure(threshold, model))


@pytest.mark.parametrize("window", [0, 1, 6])
def test_fly_over_the_whole_vocabulary_agrees_with_a_float64_transcription(window):
    check(FLy(0.45, window, entropy="full"), full(0.45, window))


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        EntropyThreshold(math.log(VOCAB)),
        EntropyThreshold(0.0, "draft"),
        FLy(1.0, entropy="full"),
        FLy(1.105),
        FLy(0.0, confidence=0.0),
    ],
)
def test_the_strict_end(rule, greedy):
    inputs = random_cases(1, greedy)
    found, strict = (expected_lengths(r, inputs) for r in (rule, SpeculativeSampling()))
    np.testing.assert_allclose(found, strict, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_it_is_relaxed(greedy):
    assert never_shorter([EntropyThreshold(threshold) for threshold in (2.0, 1.0, 0.3, -1.0)], greedy)
    assert never_shorter([EntropyThreshold(threshold, "draft") for threshold in (0.0, 0.3, 1.0, 2.0)], greedy)
    for form in ("top3", "full"):
        assert never_shorter([FLy(threshold, 1, entropy=form) for threshold in (1.0, 0.5, 0.2, -1.0)], greedy)
        assert never_shorter([FLy(0.2, window, entropy=form) for window in (6, 2, 1, 0)], greedy)


def lengths_of(rule):
    """Accepted lengths of greedy drafts of three tokens, 0 what an unsure target would write."""
    target = np.zeros((1, 4, 3))
    target[:, :, 0] = 0.5
    draft = target[:, :3]

    def length(tokens, count=3):
        return expected_lengths(rule, as_inputs([tokens], [count], draft, target, draft, target, True))[0]

    return length


def test_flys_window_lies_in_the_draft():
    length = lengths_of(FLy())  # a window of 2, one less than the draft
    assert length([1, 0, 0]) == 3
    assert length([0, 1, 0]) == 1 and length([0, 0, 1]) == 2 and length([1, 0, 1]) == 0
    assert length([1, 0, 0], count=2) == 0  # of a draft that ends early K is not less
    length = lengths_of(FLy(window=1))
    assert length([0, 1, 0]) == 3 and length([0, 0, 1]) == 2 and length([1, 0, 1]) == 2 and length([1, 1, 0]) == 0
    assert length([1, 0, 1], count=2) == 2
    assert lengths_of(FLy(window=0))([1, 2, 1]) == 3


def test_the_window_over_the_whole_vocabulary_is_cut_short_at_the_drafts_end():
    length = lengths_of(FLy(0.3, 6, entropy="full"))
    assert length([0, 0, 1]) == 3 and length([1, 0, 0]) == 3 and length([1, 0, 1]) == 0
    assert length([1, 0, 1], count=2) == 2
    assert lengths_of(FLy(0.3, 1, entropy="full"))([1, 0, 1]) == 3


def test_a_token_that_the_target_excludes_never_passes():
    target = np.array([[[0.0, 0.0, 0.0, -np.inf], [0.0, -1.0, -1.0, -1.0]]])
    for token, kept in ((1, 1), (3, 0)):
        inputs = as_inputs([[token]], [1], target[:, :1], target, target[:, :1], target, True)
        assert expected_lengths(FLy(window=0), inputs)[0] == kept


def test_the_threshold_is_reached_at_the_entropy_itself():
    """Of a uniform target over four, the three terms are 3/4 ln 4."""
    target = np.zeros((1, 2, 4))
    inputs = as_inputs([[1]], [1], target[:, :1], target, target[:, :1], target, True)
    at = np.float32(0.75 * math.log(4.0))
    assert [expected_lengths(FLy(at * c, 0), inputs)[0] for c in (0.9999, 1.0001)] == [1, 0]


@pytest.mark.parametrize("vocab", [2, 30, 50, 1000, 49152, 151936])
@pytest.mark.parametrize("rule", [EntropyThreshold, FLy])
def test_nothing_is_less_sure_than_the_strict_end_allows(rule, vocab):
    """A mismatch under uniform logits, whose entropy float32 can put above ln V."""
    level = np.zeros((2, vocab), np.float32)
    inputs = as_inputs([[1]], [1], level[None, :1], level[None], level[None, :1], level[None], True)
    strict = rule(math.log(vocab)) if rule is EntropyThreshold else rule(1.0, entropy="full")
    assert expected_lengths(strict, inputs)[0] == 0
    assert expected_lengths(dataclasses.replace(strict, threshold=strict.threshold - 1e-3), inputs)[0] == 1

"""The entropy rules: their ends; FLy's window, its draws, and its place in the draft."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import tallied
from oracles.base import Oracle
from oracles.cases import cases_of
from oracles.entropy import decided, fly, gates
from random_cases import (
    SIZE,
    VOCAB,
    as_inputs,
    batch_axes,
    expected_lengths,
    never_shorter,
    random_cases,
)

from kljudge_jax.verification import EntropyThreshold, FLy, SpeculativeSampling
from kljudge_jax.verification.rule import Odds


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


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("window", [6, 7, 4])
def test_fly_saves_lone_mismatches_of_long_drafts(window, greedy):
    inputs, rule = lone_mismatches(greedy), FLy(0.3, window)
    cases = cases_of(inputs)
    found, _, difference = tallied(Oracle(rule, fly(0.3, window)), inputs, cases)
    assert not found.differ and found.undecided < SIZE / 10, difference
    longer = expected_lengths(rule, inputs) > expected_lengths(SpeculativeSampling(), inputs) + 1e-3
    assert longer.sum() > 3


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
    for case, draws, n, marks in zip(cases_of(inputs), np.asarray(uniforms), accepted, relaxed, strict=True):
        w, passes, near = gates(case.tokens[: case.count], case.raw_target, 0.3, window, length)
        chances = [place.strict for place in case.positions()]
        if near < 1e-4 or any(abs(s - u) < 1e-5 for s, u in zip(chances, draws, strict=False)):
            continue
        expected, marked = decided([u < s for s, u in zip(chances, draws, strict=False)], passes, w)
        assert (n, list(marks)) == (expected, marked + [False] * (length - expected))
        compared, seen = compared + 1, seen + any(marked)
    assert compared > 300 and seen > 5


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

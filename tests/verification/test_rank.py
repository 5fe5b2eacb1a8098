"""The rules by rank: their strict ends, their sections, and ties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import LENGTH, SIZE, as_inputs, batch_axes, expected_lengths, never_shorter, random_cases

from kljudge_jax.errors import InputError
from kljudge_jax.verification import (
    MarginAcceptance,
    RelaxedThinking,
    RelaxedThinkingRatio,
    SpeculativeSampling,
    TopKAcceptance,
)
from kljudge_jax.verification.rule import Odds


@pytest.mark.parametrize(
    "rule", [TopKAcceptance(1), RelaxedThinking(1), RelaxedThinkingRatio(1), MarginAcceptance(1.0)]
)
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
    assert never_shorter([RelaxedThinkingRatio(5, ratio) for ratio in (1.0, 0.7, 0.2, 0.0)], greedy)
    assert never_shorter([RelaxedThinkingRatio(k, 0.1) for k in (1, 2, 3, 5)], greedy)
    assert never_shorter([MarginAcceptance(threshold) for threshold in (1.0, 0.9, 0.5, 0.0)], greedy)


def test_above_the_confidence_the_strict_rule_decides():
    for greedy in (True, False):
        inputs = random_cases(3, greedy)
        found, strict = (expected_lengths(rule, inputs) for rule in (TopKAcceptance(5, 0.0), SpeculativeSampling()))
        np.testing.assert_allclose(found, strict, atol=1e-6)


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


SECTIONED = [RelaxedThinking(3, 0.4, section="thinking"), RelaxedThinkingRatio(3, 0.4, section="thinking")]


@pytest.mark.parametrize("rule", SECTIONED, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("greedy", [True, False])
def test_outside_a_thinking_block_the_strict_rule_decides_and_corrects(rule, greedy):
    """Position by position: the acceptance and the correction of one of the two rules, as the section says."""
    inputs = random_cases(7, greedy)
    section = np.random.default_rng(7).integers(2, size=(SIZE, LENGTH + 1))

    def seen(rule, section):
        def one(case, where):
            case = dataclasses.replace(case, section=where)
            odds = Odds.of(case)
            each = jax.vmap(lambda n: rule.correction(case, n))(jnp.arange(LENGTH + 1))
            return rule.acceptance(case, odds), each

        with_section = jax.vmap(one, in_axes=(batch_axes(inputs), 0))
        return [np.asarray(x) for x in jax.jit(with_section)(inputs, jnp.asarray(section, jnp.int32))]

    free = dataclasses.replace(rule, section="all")
    ours, relaxed, strict = seen(rule, section), seen(free, section), seen(SpeculativeSampling(), section)
    assert rule.needs == {"section"} and free.needs == frozenset()
    real = np.arange(LENGTH) < np.asarray(inputs.draft_count)[:, None]
    inside = section == 1
    expected = np.where(inside[:, :LENGTH], relaxed[0], strict[0])
    np.testing.assert_array_equal(ours[0][real], expected[real])
    assert (ours[0] != relaxed[0])[real].any() and (ours[0] != strict[0])[real].any()
    scored = np.arange(LENGTH + 1) <= np.asarray(inputs.draft_count)[:, None]
    expected = np.where(inside[:, :, None], relaxed[1], strict[1])
    # Three programs, of which XLA may round each in its own way.
    np.testing.assert_allclose(ours[1][scored], expected[scored], rtol=0, atol=1e-6)
    assert greedy or (np.abs(relaxed[1] - strict[1])[scored] > 1e-2).any()


@pytest.mark.parametrize("rule", SECTIONED, ids=lambda rule: type(rule).__name__)
def test_a_thinking_block_of_unknown_ids_is_refused_in_one_line(rule):
    with pytest.raises(InputError, match="relaxes inside thinking blocks, and no ids of one are given") as error:
        expected_lengths(rule, random_cases(8, True))
    assert "\n" not in str(error.value) and "section_ids" in str(error.value) and "section=all" in str(error.value)


def test_the_edge_of_the_ratio_passes():
    target = np.float32([[0.0, 0.0], [0.0, 0.0]])
    inputs = as_inputs([[1]], [1], target[None, :1], target[None], target[None, :1], target[None], True)
    assert expected_lengths(RelaxedThinkingRatio(2, 1.0), inputs)[0] == 1
    assert expected_lengths(RelaxedThinkingRatio(1, 0.0), inputs)[0] == 0

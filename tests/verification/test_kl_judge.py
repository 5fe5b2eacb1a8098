"""KLJudge: its limits, its coin, and what it costs to sweep its threshold."""

import dataclasses
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import as_inputs, batch_axes, random_cases, verdicts

from kljudge_jax.verification import GreedyExact, KLJudge, SpeculativeSampling


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("rule", [KLJudge(-1.0), KLJudge(0.0), KLJudge(5.0, confidence=0.0)])
def test_strict_limits_give_the_strict_verdict_for_the_same_key(rule, greedy):
    inputs = random_cases(1, greedy)
    strict = verdicts(SpeculativeSampling(), inputs)
    chex.assert_trees_all_equal(verdicts(rule, inputs), strict)
    if greedy:
        chex.assert_trees_all_equal(verdicts(GreedyExact(), inputs), strict)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_the_threshold_rises(greedy):
    inputs = random_cases(3, greedy)
    sweep = (-1.0, 0.05, 0.3, 1.0, 4.0, math.inf)
    lengths = [np.asarray(verdicts(KLJudge(tau, 0.95), inputs).num_accepted) for tau in sweep]
    assert all((longer >= shorter).all() for shorter, longer in itertools.pairwise(lengths))
    assert lengths[-1].sum() > lengths[0].sum()


def test_the_threshold_is_strict_and_the_confidence_is_not():
    uniform = np.zeros((2, 2))
    skewed = np.array([[math.log(3.0), 0.0]])
    divergence = float(np.float32(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)))
    inputs = as_inputs([1], 1, skewed, uniform, skewed, uniform, True)

    def accepted(rule):
        return float(run(rule, inputs)[1])

    run = jax.jit(lambda rule, inputs: rule.acceptance_distribution(inputs))

    assert accepted(KLJudge(divergence * 1.0001, confidence=0.5)) == 1
    assert accepted(KLJudge(divergence * 0.9999, confidence=0.5)) == 0
    assert accepted(KLJudge(1.0, confidence=0.4999)) == 0
    assert accepted(KLJudge(math.inf)) == 1
    inputs = as_inputs([1], 1, uniform[:1], uniform, uniform[:1], uniform, True)
    assert accepted(KLJudge(0.0, 1.0)) == 0
    assert accepted(KLJudge(1e-6, 1.0)) == 1


def test_relaxed_is_what_the_strict_rule_with_the_same_coin_would_have_refused():
    inputs = random_cases(5, False)
    strict, judge = verdicts(SpeculativeSampling(), inputs), verdicts(KLJudge(1.0, 1.0), inputs)
    n_strict, n_judge, relaxed = map(np.asarray, (strict.num_accepted, judge.num_accepted, judge.relaxed))
    for shorter, longer, marks in zip(n_strict, n_judge, relaxed, strict=True):
        # The strict run ends at its first refusal: none before it is relaxed, and it is if the judge went on.
        assert not marks[:shorter].any()
        assert longer == shorter or marks[shorter]
        assert not marks[longer:].any()
    assert relaxed.any() and not np.asarray(strict.relaxed).any()


def test_no_kl_is_computed_from_truncated_logits():
    raw_target, raw_draft = np.array([[1.0, 0.9, 0.8], [0.0, 0.0, 0.0]]), np.array([[1.0, 0.9, 0.7]])
    cut_target, cut_draft = np.array(raw_target), np.array(raw_draft)
    cut_target[0, 1:], cut_draft[0, :2] = -np.inf, -np.inf
    inputs = as_inputs([2], 1, cut_draft, cut_target, raw_draft, raw_target, False)
    assert float(jax.jit(KLJudge(0.4).acceptance_distribution)(inputs)[1]) == 1


def test_a_sweep_compiles_once():
    inputs = random_cases(7, True, size=8)
    keys = jax.random.split(jax.random.key(0), 8)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(rule, keys, inputs):
        return jax.vmap(rule, in_axes=(0, batch_axes(inputs)))(keys, inputs)

    for tau, greedy in ((0.1, True), (0.4, False), (1.4, True)):
        run(jax.tree.map(jnp.float32, KLJudge(tau, 0.9)), keys, dataclasses.replace(inputs, greedy=jnp.asarray(greedy)))

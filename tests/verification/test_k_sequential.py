"""K-SEQ: its distribution by enumeration of every set of drafts, and its draws by its distribution."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import as_inputs, random_cases, verdicts
from scipy import stats
from test_exact import KINDS_OF_MODELS, continuation, continuations, models
from transcription import softmax

from kljudge_jax.errors import InputError
from kljudge_jax.verification import GreedyExact, KSequential
from kljudge_jax.verification.k_sequential import k_sequential_step

RULE = KSequential()
AXES = dataclasses.replace(as_inputs(*(0,) * 6, False), **dict.fromkeys(("draft_hidden", "target_hidden", "greedy")))
AXES = jax.tree.map(lambda _: 0, AXES)


# Compiling is most of what these tests cost.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@compiled
def lengths_and_corrections(inputs):
    """distribution `[N, D, K + 1]` and corrections `[N, D, K + 1, V]` of N sets of drafts."""

    def one(case):
        drafts, length = case.draft_tokens.shape
        each = jax.vmap(jax.vmap(functools.partial(RULE.correction_among, case), (None, 0)), (0, None))
        return RULE.law_among(case), each(jnp.arange(drafts), jnp.arange(length + 1))

    return jax.vmap(one, in_axes=(AXES,))(inputs)


def several(target, draft, drafts, length, vocab):
    """Every set of drafts, as inputs with leading axes N and D, and how probable each is."""
    single = list(itertools.product(range(vocab), repeat=length))
    sets = list(itertools.product(single, repeat=drafts))
    target_logits = np.array([[[target[d[:i]] for i in range(length + 1)] for d in chosen] for chosen in sets])
    draft_logits = np.array([[[draft[d[:i]] for i in range(length)] for d in chosen] for chosen in sets])
    counts = np.full((len(sets), drafts), length)
    drawn = [np.prod([softmax(draft[d[:i]])[token] for d in chosen for i, token in enumerate(d)]) for chosen in sets]
    inputs = as_inputs(np.array(sets), counts, draft_logits, target_logits, draft_logits, target_logits, False)
    return sets, inputs, np.array(drawn)


def joint_and_mean(kind, drafts, length, vocab, seed=5):
    """Joint distribution of the first length + 1 tokens, the target's own, and the mean accepted length."""
    target, draft = models(np.random.default_rng(seed), kind, length, vocab)
    sets, inputs, drawn = several(target, draft, drafts, length, vocab)
    distributions, corrections = (np.asarray(x, np.float64) for x in lengths_and_corrections(inputs))
    joint, rest = np.zeros((vocab,) * (length + 1)), continuations(target, length + 1, vocab)
    for chosen, weight, distribution, correction in zip(sets, drawn, distributions, corrections, strict=True):
        if weight == 0:
            continue
        np.testing.assert_allclose(distribution.sum(), 1.0, atol=1e-6)
        for j, n in zip(*np.nonzero(distribution), strict=True):
            for token, p in enumerate(correction[j, n]):
                prefix = (*chosen[j][:n], token)
                joint[prefix] += weight * distribution[j, n] * p * rest[prefix]
    return joint, continuation(target, (), length + 1), drawn @ distributions.sum(axis=1) @ np.arange(length + 1)


@pytest.mark.parametrize("kind", KINDS_OF_MODELS)
@pytest.mark.parametrize(("drafts", "length", "vocab"), [(2, 3, 3), (3, 2, 3)])
def test_enumeration_finds_the_target(kind, drafts, length, vocab):
    joint, expected, _ = joint_and_mean(kind, drafts, length, vocab)
    np.testing.assert_allclose(joint, expected, atol=1e-6)


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_enumeration_finds_the_target_at_five_tokens(drafts):
    joint, expected, _ = joint_and_mean("random", drafts, 1, 5)
    np.testing.assert_allclose(joint, expected, atol=1e-6)


@pytest.mark.slow
def test_more_drafts_are_longer_on_average():
    means = [joint_and_mean("random", drafts, 2, 3)[2] for drafts in (1, 2, 3)]
    assert means[0] < means[1] - 0.01 and means[1] < means[2] - 0.01


def test_enumeration_can_fail(monkeypatch):
    """With what is left of p after one draft in place of several, say."""
    lengths_and_corrections.clear_cache()
    with monkeypatch.context() as patch:
        wrong = "kljudge_jax.verification.k_sequential.k_sequential_step"
        patch.setattr(wrong, lambda p, q, *rest: (k_sequential_step(p, q, *rest)[0], jnp.maximum(p - q, 0)))
        joint, expected, _ = joint_and_mean("random", 2, 2, 3)
    lengths_and_corrections.clear_cache()
    assert np.abs(joint - expected).max() > 1e-3


@compiled
def chosen(keys, inputs):
    return jax.vmap(RULE.choose, in_axes=(0, None))(keys, inputs)


def test_draws_follow_law_and_corrections():
    target, draft = models(np.random.default_rng(7), "random", 2, 3)
    _, inputs, _ = several(target, draft, 2, 2, 3)
    draws = 20_000
    distributions, corrections = (np.asarray(x, np.float64) for x in lengths_and_corrections(inputs))
    surprises = (distributions[..., None] * corrections > 0.02).sum(axis=(1, 2, 3))
    for case in np.argsort(-surprises)[:2]:
        one = jax.tree.map(lambda x, case=case: x[case] if x.ndim else x, inputs)
        verdict, branch = chosen(jax.random.split(jax.random.key(case), draws), one)
        counted = np.zeros_like(corrections[case])
        np.add.at(counted, (np.asarray(branch), np.asarray(verdict.num_accepted), np.asarray(verdict.next_token)), 1)
        expected = distributions[case][..., None] * corrections[case] * draws
        assert not counted[expected == 0].any() and not np.asarray(verdict.relaxed).any()
        common = expected > 5
        assert common.sum() > 4
        assert (
            stats.chisquare(counted[common], expected[common] * counted[common].sum() / expected[common].sum()).pvalue
            > 1e-4
        )


def test_greedy_drafts_are_all_the_same_and_the_rule_is_exact():
    inputs = random_cases(31, True)
    exact = verdicts(GreedyExact(), inputs)
    doubled = jax.tree.map(lambda x: jnp.stack([x, x], axis=1) if x.ndim else x, inputs)
    keys = jax.random.split(jax.random.key(0), inputs.draft_count.shape[0])
    verdict, branch = compiled(jax.vmap(RULE.choose, in_axes=(0, AXES)))(keys, doubled)
    np.testing.assert_array_equal(verdict.num_accepted, exact.num_accepted)
    np.testing.assert_array_equal(verdict.next_token, exact.next_token)
    assert not np.asarray(branch).any() and not np.asarray(verdict.relaxed).any()


def test_a_draft_ends_where_its_count_does():
    """The drafts that share a prefix end together; the bonus token then comes from the target after it."""
    logits = np.log([[[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.5, 0.5]]])
    target = np.log([[[0.9, 0.1], [1e-9, 1.0], [0.5, 0.5]]] * 2)
    target[:, 2] = logits[:, 1] = np.nan
    inputs = as_inputs([[0, 5], [1, 9]], [1, 1], logits, target, logits, target, False)
    verdict, branch = chosen(jax.random.split(jax.random.key(0), 400), inputs)
    np.testing.assert_array_equal(verdict.num_accepted, 1)  # p is q: one of the two is always accepted
    assert (np.asarray(verdict.next_token) == 1).all() and set(np.asarray(branch).tolist()) == {0}


@pytest.mark.parametrize("drafts", [0, -1, 2.5, 65, "2"])
def test_numbers_of_drafts_that_cannot_be_are_refused(drafts):
    with pytest.raises(InputError, match="KSequential a whole number from 1 up to 64 as its drafts"):
        KSequential(drafts)

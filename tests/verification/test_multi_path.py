"""Greedy multi-path block verification: what it emits, by enumeration of every set of drafts, and its draws."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import as_inputs, random_cases, verdicts
from scipy import stats
from test_exact import KINDS_OF_MODELS, continuation, continuations, drafted_length, models
from test_k_sequential import AXES, several
from transcription import softmax

from kljudge_jax.verification import BlockVerification, GreedyExact, MultiPathBlock, multi_path

RULE = MultiPathBlock()

# Compiling is most of what these tests cost.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@compiled
def outcomes(inputs):
    """Of N sets of drafts: the one followed `[N]`, its distribution of lengths `[N, K + 1]`, the corrections after each
    `[N, K + 1, V]`, and the distributions that it is verified against `[N, K, V]`."""

    def one(case):
        followed, branch = RULE.greatest(case)
        lengths = jnp.arange(followed.draft_tokens.shape[0] + 1)
        corrections = jax.vmap(functools.partial(RULE.correction, followed))(lengths)
        return branch, RULE.acceptance_distribution(followed), corrections, jax.nn.softmax(followed.draft_logits)

    return jax.vmap(one, in_axes=(AXES,))(inputs)


def joint_and_mean(target, draft, drafts, length, vocab):
    """Joint distribution of the first length + 1 tokens, and the mean accepted length."""
    sets, inputs, drawn = several(target, draft, drafts, length, vocab)
    branches, distributions, corrections, _ = (np.asarray(x, np.float64) for x in outcomes(inputs))
    joint, rest = np.zeros((vocab,) * (length + 1)), continuations(target, length + 1, vocab)
    for chosen, weight, j, distribution, correction in zip(
        sets, drawn, branches, distributions, corrections, strict=True
    ):
        if weight == 0:
            continue
        np.testing.assert_allclose(distribution.sum(), 1.0, atol=1e-6)
        for n, token in itertools.product(range(length + 1), range(vocab)):
            prefix = (*chosen[int(j)][:n], token)
            emitted = weight * distribution[n] * correction[n, token]
            joint[prefix] += emitted * rest[prefix]
    return joint, drawn @ distributions @ np.arange(length + 1)


@pytest.mark.parametrize("kind", KINDS_OF_MODELS)
@pytest.mark.parametrize(("drafts", "length", "vocab"), [(2, 3, 3), (3, 2, 3)])
def test_enumeration_finds_the_target(kind, drafts, length, vocab):
    for seed in (5, 6):
        target, draft = models(np.random.default_rng(seed), kind, length, vocab)
        joint, _ = joint_and_mean(target, draft, drafts, length, vocab)
        np.testing.assert_allclose(joint, continuation(target, (), length + 1), atol=1e-6)


@pytest.mark.parametrize("drafts", [1, 2, 3, 4])
def test_enumeration_finds_the_target_at_five_tokens(drafts):
    target, draft = models(np.random.default_rng(8), "random", 1, 5)
    joint, _ = joint_and_mean(target, draft, drafts, 1, 5)
    np.testing.assert_allclose(joint, continuation(target, (), 2), atol=1e-6)


@pytest.mark.parametrize("drafts", [2, 3])
@pytest.mark.first_case
def test_enumeration_finds_the_target_where_tokens_tie(drafts):
    """Of four tokens two have one ratio: which is the greater must be said alike of drafts and of sums."""
    target, draft = models(np.random.default_rng(9), "random", 2, 4)
    for prefix in target:
        draft[prefix] = target[prefix] - np.array([1.0, 1.0, 0.0, 0.0])
    joint, _ = joint_and_mean(target, draft, drafts, 2, 4)
    np.testing.assert_allclose(joint, continuation(target, (), 3), atol=1e-6)


def test_enumeration_can_fail(monkeypatch):
    """With q in place of the distribution of the greatest draft, say."""
    target, draft = models(np.random.default_rng(5), "random", 2, 3)
    outcomes.clear_cache()
    with monkeypatch.context() as patch:
        patch.setattr(multi_path._Order, "of_greatest", lambda self, prefix, drafts: self.log_q)
        joint, _ = joint_and_mean(target, draft, 2, 2, 3)
    outcomes.clear_cache()
    assert np.abs(joint - continuation(target, (), 3)).max() > 1e-3


def greatest_by_hand(target, draft, chosen):
    """Which of some drafts is the greatest: by p / q token by token, the larger id in a tie."""

    def rank(d):
        ratios = [softmax(target[d[:i]])[v] / softmax(draft[d[:i]])[v] for i, v in enumerate(d)]
        return [(ratio, v) for ratio, v in zip(ratios, d, strict=True)]

    return max(range(len(chosen)), key=lambda j: (rank(chosen[j]), -j))


@pytest.mark.parametrize(("drafts", "length", "vocab"), [(2, 2, 3), (3, 2, 3), (5, 1, 3)])
def test_the_distribution_of_the_greatest_draft_is_that_of_counting(drafts, length, vocab):
    """In float64 and without its formula: every set of drafts, the greatest of each, and what follows its prefixes."""
    target, draft = models(np.random.default_rng(10), "random", length, vocab)
    sets, inputs, drawn = several(target, draft, drafts, length, vocab)
    branches, _, _, against = (np.asarray(x, np.float64) for x in outcomes(inputs))
    counted = {}
    for chosen, weight, branch in zip(sets, drawn, branches, strict=True):
        assert chosen[int(branch)] == chosen[greatest_by_hand(target, draft, chosen)]
        for i, token in enumerate(chosen[int(branch)]):
            counted.setdefault(chosen[int(branch)][:i], np.zeros(vocab))[token] += weight
    for chosen, branch, rows in zip(sets, branches, against, strict=True):
        for i, row in enumerate(rows):
            expected = counted[chosen[int(branch)][:i]]
            np.testing.assert_allclose(row, expected / expected.sum(), atol=2e-6)


@pytest.mark.slow
def test_more_drafts_are_longer_where_models_differ_and_shorter_where_they_are_close():
    """One draft is block verification. Means over six pairs, exactly, as the rule's own page says it."""
    for noise, longer in ((2.0, True), (0.3, False)):
        means = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            target, _ = models(rng, "random", 2, 3)
            draft = {prefix: logits + noise * rng.normal(size=3) for prefix, logits in target.items()}
            means.append([joint_and_mean(target, draft, drafts, 2, 3)[1] for drafts in (1, 2, 3)])
            one = drafted_length(BlockVerification(), target, draft, 2, 3)
            np.testing.assert_allclose(means[-1][0], one, atol=1e-6)
        one, two, three = np.mean(means, axis=0)
        assert (one < two < three) == longer and (one > two > three) != longer


def test_a_large_vocabulary_and_many_drafts_stay_distributions():
    """With masses from 1 to 1e-30, along prefixes that are nearly impossible."""
    rng = np.random.default_rng(3)
    vocab, drafts, length = 5000, 64, 6
    draft, target = 12 * rng.normal(size=(2, drafts, length + 1, vocab))
    tokens = rng.integers(vocab, size=(drafts, length))
    tokens[:, :4] = tokens[0, :4]
    inputs = as_inputs(tokens, [length] * drafts, draft[:, :length], target, draft[:, :length], target, False)
    followed, branch = compiled(RULE.greatest)(inputs)
    against = np.asarray(jax.nn.softmax(followed.draft_logits), np.float64)
    assert (np.asarray(followed.draft_logits) < np.inf).all() and np.isfinite(against).all()
    np.testing.assert_allclose(against.sum(axis=1), 1.0, atol=1e-5)
    # Of the first token everything is known: its greatest of 64 draws.
    p, q = softmax(target[0, 0]), softmax(draft[0, 0])
    order = np.argsort(np.asarray(multi_path._Order.of(inputs.target_logits[0, 0], inputs.draft_logits[0, 0]).key))
    ratios = np.clip(np.log(p) - np.log(q), -16, 16)[order]
    assert (np.diff(ratios) > -1e-3).all() and ratios[0] < -10 and ratios[-1] > 10
    sums = np.cumsum(q[order])
    expected = np.empty(vocab)
    expected[order] = np.diff(np.append(0.0, sums / sums[-1]) ** drafts)
    np.testing.assert_allclose(against[0], expected, atol=1e-5)
    assert p[order[-1]] > 0 and 0 <= int(branch) < drafts


@pytest.mark.parametrize("vocab", [1, 2, 5, 300, 4096])
def test_both_ways_to_sum_what_is_below_agree_with_float64(vocab):
    rng = np.random.default_rng(vocab)
    target, draft = jnp.asarray(6 * rng.normal(size=(2, vocab)), jnp.float32)
    keys, drawn, *found = (np.asarray(x) for x in both_ways(target, draft))
    assert len(set(keys.tolist())) == vocab
    wanted = np.array([np.asarray(drawn, np.float64)[keys < key].sum() for key in keys])
    for below in found:
        np.testing.assert_allclose(below, wanted, atol=1e-6)


@compiled
def both_ways(target, draft):
    draft = jnp.where(jnp.arange(draft.shape[0]) % 7 == 3, -jnp.inf, draft)
    order = multi_path._Order.of(target, draft)
    drawn = jnp.exp(order.log_q)
    ways = multi_path._below_by_scatter, multi_path._below_by_sorts
    return order.key, drawn, *(way(order.key, drawn) for way in ways)


@compiled
def chosen(keys, inputs):
    return jax.vmap(RULE.choose, in_axes=(0, None))(keys, inputs)


def test_draws_follow_the_distributions():
    target, draft = models(np.random.default_rng(7), "random", 2, 3)
    _, inputs, _ = several(target, draft, 2, 2, 3)
    draws = 20_000
    branches, distributions, corrections, _ = (np.asarray(x, np.float64) for x in outcomes(inputs))
    surprises = (distributions[..., None] * corrections > 0.02).sum(axis=(1, 2))
    for case in np.argsort(-surprises)[:3]:
        one = jax.tree.map(lambda x, case=case: x[case] if x.ndim else x, inputs)
        verdict, branch = chosen(jax.random.split(jax.random.key(case), draws), one)
        assert (np.asarray(branch) == branches[case]).all() and not np.asarray(verdict.relaxed).any()
        counted = np.zeros_like(corrections[case])
        np.add.at(counted, (np.asarray(verdict.num_accepted), np.asarray(verdict.next_token)), 1)
        expected = distributions[case][:, None] * corrections[case] * draws
        assert not counted[expected == 0].any()
        common = expected > 5
        assert common.sum() > 3
        scale = counted[common].sum() / expected[common].sum()
        assert stats.chisquare(counted[common], expected[common] * scale).pvalue > 1e-4


def test_greedy_drafts_are_all_the_same_and_the_rule_is_exact():
    inputs = random_cases(31, True)
    exact = verdicts(GreedyExact(), inputs)
    doubled = jax.tree.map(lambda x: jnp.stack([x, x], axis=1) if x.ndim else x, inputs)
    keys = jax.random.split(jax.random.key(0), inputs.draft_count.shape[0])
    verdict, branch = compiled(jax.vmap(RULE.choose, in_axes=(0, AXES)))(keys, doubled)
    np.testing.assert_array_equal(verdict.num_accepted, exact.num_accepted)
    np.testing.assert_array_equal(verdict.next_token, exact.next_token)
    assert not np.asarray(branch).any() and not np.asarray(verdict.relaxed).any()


def test_drafts_that_end_at_different_lengths():
    """As at an end of text. Token 0 ends a draft; enumerated, with NaN and wild ids past each draft's end."""
    length, vocab = 2, 3
    target, draft = models(np.random.default_rng(12), "random", length, vocab)
    ended = [(0,), *((a, b) for a in range(1, vocab) for b in range(vocab))]
    joint = np.zeros((vocab,) * (length + 1))
    sets = list(itertools.product(ended, repeat=2))
    shapes = ((len(sets), 2, length), (len(sets), 2, length, vocab), (len(sets), 2, length + 1, vocab))
    tokens, q, p = np.full(shapes[0], -7), np.full(shapes[1], np.nan), np.full(shapes[2], np.nan)
    for s, drafts in enumerate(sets):
        for j, d in enumerate(drafts):
            tokens[s, j, : len(d)] = d
            for i in range(len(d) + 1):
                p[s, j, i] = target[d[:i]]
                if i < len(d):
                    q[s, j, i] = draft[d[:i]]
    counts = np.array([[len(d) for d in drafts] for drafts in sets])
    branches, distributions, corrections, _ = outcomes(as_inputs(tokens, counts, q, p, q, p, False))
    for drafts, j, distribution, correction in zip(sets, branches, distributions, corrections, strict=True):
        weight = np.prod([softmax(draft[d[:i]])[token] for d in drafts for i, token in enumerate(d)])
        d = drafts[int(j)]
        np.testing.assert_allclose(distribution.sum(), 1.0, atol=1e-6)
        assert not np.asarray(distribution)[len(d) + 1 :].any()
        for n, token in itertools.product(range(len(d) + 1), range(vocab)):
            prefix = (*d[:n], token)
            emitted = weight * float(distribution[n]) * float(correction[n, token])
            joint[prefix] += emitted * continuation(target, prefix, length + 1)
    np.testing.assert_allclose(joint, continuation(target, (), length + 1), atol=1e-6)


def test_one_draft_is_taken_as_it_is():
    inputs = random_cases(33, False)
    single = jax.tree.map(lambda x: x[:, None] if x.ndim else x, inputs)
    keys = jax.random.split(jax.random.key(0), inputs.draft_count.shape[0])
    verdict, _ = compiled(jax.vmap(RULE.choose, in_axes=(0, AXES)))(keys, single)
    expected = verdicts(BlockVerification(), inputs)
    np.testing.assert_array_equal(verdict.num_accepted, expected.num_accepted)
    np.testing.assert_array_equal(verdict.next_token, expected.next_token)
    assert dataclasses.replace(RULE, drafts=1).drafts == 1

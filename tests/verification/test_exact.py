"""The strict rules, exactly: every outcome enumerated, the target's joint distribution found again."""

import dataclasses
import itertools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import KINDS, as_inputs, lengths_and_corrections, random_cases, rows, verdicts
from transcription import softmax

from kljudge_jax.verification import (
    BlockVerification,
    Cactus,
    Ensemble,
    GreedyExact,
    KLJudge,
    Lenience,
    RandomAcceptance,
    SpeculativeSampling,
)

# Those that are lossless, and the relaxed ones at the end of their range where they are.
LOSSLESS = [
    SpeculativeSampling(),
    BlockVerification(),
    KLJudge(-1.0),
    RandomAcceptance(0.0),
    Lenience(1.0),
    Cactus(0.0),
    Ensemble(1.0),
]

KINDS_OF_MODELS = ["random", "equal", "target_holes", "draft_holes", "one_hot_draft", "disjoint"]


def models(rng, kind, length, vocab):
    """Next-token logits of target and draft after every prefix of up to `length` tokens."""
    target, draft = {}, {}
    for size in range(length + 1):
        for prefix in itertools.product(range(vocab), repeat=size):
            p, q = 2 * rng.normal(size=vocab), 2 * rng.normal(size=vocab)
            if kind == "equal":
                q = p.copy()
            if kind == "target_holes":
                p[rng.choice(vocab, size=vocab // 2, replace=False)] = -np.inf
            if kind == "draft_holes":
                q[rng.choice(vocab, size=vocab // 2, replace=False)] = -np.inf
            if kind == "one_hot_draft":
                q[np.arange(vocab) != rng.integers(vocab)] = -np.inf
            if kind == "disjoint":
                p[0], q[1:] = -np.inf, -np.inf
            target[prefix], draft[prefix] = p, q
    return target, draft


def enumerated(rule, target, draft, count, length, vocab):
    """Joint distribution of the first count + 1 tokens, when later cycles follow the target; `[V] * (count + 1)`."""
    drafts = list(itertools.product(range(vocab), repeat=count))
    # Padded to one shape, so that every count shares one compiled program; so are the rows past the draft.
    drafts += drafts[-1:] * (vocab**length - len(drafts))
    # Numbers, for a NaN that was read could be taken for an empty residual.
    garbage = [np.arange(vocab) * 3.0] * (length - count)
    target_logits = np.array([[target[d[:i]] for i in range(count + 1)] + garbage for d in drafts])
    draft_logits = np.array([[draft[d[:i]] for i in range(count)] + garbage for d in drafts])
    tokens = np.array([d + (0,) * (length - count) for d in drafts])
    counts = np.full(len(drafts), count)
    inputs = as_inputs(tokens, counts, draft_logits, target_logits, draft_logits, target_logits, False)
    distributions, corrections = lengths_and_corrections(rule, inputs)
    joint, rest = np.zeros((vocab,) * (count + 1)), continuations(target, count + 1, vocab)
    for drafted, distribution, correction in zip(drafts[: vocab**count], distributions, corrections, strict=False):
        drawn = np.prod([softmax(draft[drafted[:i]])[token] for i, token in enumerate(drafted)])
        if drawn == 0:
            continue
        np.testing.assert_allclose(distribution.sum(), 1.0, atol=1e-6)
        for n in range(count + 1):
            emitted = drawn * distribution[n] * correction[n]
            for token in range(vocab):
                prefix = (*drafted[:n], token)
                joint[prefix] += emitted[token] * rest[prefix]
    return joint


def continuation(target, prefix, size):
    """Probability of what completes the prefix to `size` tokens: `[V] * (size - len(prefix))`."""
    if len(prefix) == size:
        return np.ones(())
    p = softmax(target[prefix])
    return np.stack([p[v] * continuation(target, (*prefix, v), size) for v in range(len(p))])


def continuations(target, size, vocab):
    """`continuation` of every prefix of 1 to `size` tokens."""
    prefixes = (prefix for n in range(1, size + 1) for prefix in itertools.product(range(vocab), repeat=n))
    return {prefix: continuation(target, prefix, size) for prefix in prefixes}


@pytest.mark.parametrize("kind", KINDS_OF_MODELS)
@pytest.mark.parametrize("rule", LOSSLESS[:2], ids=lambda rule: type(rule).__name__)
def test_enumeration_finds_the_target(rule, kind):
    check_enumeration(rule, kind)


@pytest.mark.parametrize("rule", LOSSLESS[2:], ids=lambda rule: type(rule).__name__)
def test_enumeration_finds_the_target_at_the_strict_end_of_a_relaxed_rule(rule):
    check_enumeration(rule, "draft_holes")


def check_enumeration(rule, kind):
    rng = np.random.default_rng(11)
    for count in (0, 1, 2, 3):
        target, draft = models(rng, kind, 3, 3)
        joint = enumerated(rule, target, draft, count, 3, 3)
        np.testing.assert_allclose(joint, continuation(target, (), count + 1), atol=1e-6)


@pytest.mark.parametrize("length, vocab", [(3, 5), (3, 2), (1, 5)])
@pytest.mark.parametrize("rule", LOSSLESS[:2], ids=lambda rule: type(rule).__name__)
def test_enumeration_finds_the_target_at_other_sizes(rule, length, vocab):
    target, draft = models(np.random.default_rng(12), "random", length, vocab)
    joint = enumerated(rule, target, draft, length, length, vocab)
    np.testing.assert_allclose(joint, continuation(target, (), length + 1), atol=1e-6)


def drafted_length(rule, target, draft, length, vocab):
    """The accepted length that a rule expects over the draft's own draws."""
    drafts = list(itertools.product(range(vocab), repeat=length))
    target_logits = np.array([[target[d[:i]] for i in range(length + 1)] for d in drafts])
    draft_logits = np.array([[draft[d[:i]] for i in range(length)] for d in drafts])
    counts = np.full(len(drafts), length)
    inputs = as_inputs(np.array(drafts), counts, draft_logits, target_logits, draft_logits, target_logits, False)
    distributions, _ = lengths_and_corrections(rule, inputs)
    drawn = [np.prod([softmax(draft[d[:i]])[token] for i, token in enumerate(d)]) for d in drafts]
    return float(np.dot(drawn, np.asarray(distributions) @ np.arange(length + 1)))


def test_block_verification_never_accepts_fewer_than_speculative_sampling():
    """For every pair of models, by enumeration of the draft's draws; more for some."""
    rng, gains = np.random.default_rng(14), []
    for kind in KINDS_OF_MODELS:
        for _ in range(4):
            pair = models(rng, kind, 3, 3)
            block, token = (drafted_length(rule, *pair, 3, 3) for rule in (BlockVerification(), SpeculativeSampling()))
            assert block >= token - 1e-6, kind
            gains.append(block - token)
    assert max(gains) > 0.01


def test_enumeration_can_fail():
    target, draft = models(np.random.default_rng(13), "random", 2, 3)
    joint = enumerated(Lenience(0.5), target, draft, 2, 2, 3)
    assert np.abs(joint - continuation(target, (), 3)).max() > 1e-3


@pytest.mark.parametrize("rule", [*LOSSLESS, GreedyExact()], ids=lambda rule: type(rule).__name__)
def test_greedy_is_the_targets_own_argmax(rule):
    # Lenience, alone, lets a token through that ties with the argmax.
    inputs = random_cases(14, True, kinds=[kind for kind in KINDS if kind != "ties" or not isinstance(rule, Lenience)])
    result = verdicts(rule, inputs)
    lengths, tokens_after = np.asarray(result.num_accepted), np.asarray(result.next_token)
    for case, n, token in zip(rows(inputs), lengths, tokens_after, strict=True):
        tokens, count, _, target = case[:4]
        best = [int(np.argmax(row)) for row in target[: count + 1]]
        match = 0
        while match < count and tokens[match] == best[match]:
            match += 1
        assert (n, token) == (match, best[match])
    assert not np.asarray(result.relaxed).any()


def test_greedy_exact_is_greedy_whatever_the_inputs_say():
    inputs = random_cases(15, True)
    said_otherwise = dataclasses.replace(inputs, greedy=jnp.asarray(False))
    chex.assert_trees_all_equal(verdicts(GreedyExact(), said_otherwise), verdicts(GreedyExact(), inputs))
    assert GreedyExact.greedy_only and not SpeculativeSampling.greedy_only

"""Block verification of long drafts, and beside speculative sampling; its losslessness is enumerated in test_exact."""

import itertools

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, random_cases, rows

from kljudge_jax.verification import BlockVerification, SpeculativeSampling


def long_draft(kind, seed, length=64, vocab=6):
    """Drafts whose prefix weight leaves float32 and comes back: ratios p(d) / q(d) of many sizes, one after another."""
    random = np.random.default_rng(seed)
    target, draft = random.normal(size=(length + 1, vocab)), random.normal(size=(length, vocab))
    tokens, half = random.integers(vocab, size=length), length // 2
    for i in range(length):
        log_ratio = {
            "back": -20.0 if i < half else 20.0 * half / 3 if i < half + 3 else 0.0,
            "half way back": -15.0 if i < half else 15.0 - (0.02 if i % 7 == 0 else 0.0),
            "wandering": random.normal() * 40.0,
            "dead": 30.0 if i != 5 else -np.inf,
            "never drawn": -12.0,
        }[kind]
        if log_ratio < 0:
            target[i, tokens[i]] = min(log_ratio, 0.0) + draft[i].min()
        else:
            draft[i, tokens[i]] = -log_ratio + target[i].min()
    if kind == "never drawn":
        draft[half, tokens[half]] = -np.inf
    return tokens, target.astype(np.float32), draft.astype(np.float32)


@pytest.mark.parametrize("kind", ["back", "half way back", "wandering", "dead", "never drawn"])
def test_the_weight_of_a_long_prefix_neither_underflows_nor_rises_from_nothing(kind):
    length, cases = 64, [long_draft(kind, seed) for seed in range(20)]
    counts = [length - seed for seed in range(20)]
    tokens, targets, drafts = (np.stack(each) for each in zip(*cases, strict=True))
    inputs = as_inputs(tokens, counts, drafts, targets, drafts, targets, False)
    distributions, corrections = lengths_and_corrections(BlockVerification(), inputs)
    returned = False
    for case, count, distribution, correction in zip(rows(inputs), counts, distributions, corrections, strict=True):
        log_p, log_q = log_softmax(case[3]), log_softmax(case[2])
        log_a = [0.0]
        for i in range(count):
            wanted, drawn = log_p[i, case[0][i]], log_q[i, case[0][i]]
            dead = log_a[-1] == -np.inf or wanted == -np.inf
            log_a.append(-np.inf if dead else 0.0 if drawn == -np.inf else min(0.0, log_a[-1] + wanted - drawn))
        returned |= any(low < -110 and high > -0.3 for low, high in itertools.combinations(log_a, 2))
        passes, residuals = [1.0], []
        for n in range(count):
            residuals.append(np.maximum(np.exp(log_a[n] + log_p[n]) - np.exp(log_q[n]), 0))
            if n:
                gain, lacking = residuals[n].sum(), -np.expm1(log_a[n])
                passes.append(gain / (gain + lacking) if gain + lacking > 0 else 1.0)
        passes.append(np.exp(log_a[count]))
        expected = np.array([passes[n] * np.prod([1 - h for h in passes[n + 1 :]]) for n in range(count + 1)])
        np.testing.assert_allclose(distribution[: count + 1], expected, atol=2e-4)
        np.testing.assert_allclose(distribution.sum(), 1.0, atol=1e-5)
        for n in range(count):
            if residuals[n].sum() > 1e-3 and expected[n] > 1e-6:
                np.testing.assert_allclose(correction[n], residuals[n] / residuals[n].sum(), atol=2e-3)
    assert returned == (kind in ("back", "wandering", "never drawn"))


def log_softmax(logits):
    peak = logits.max(axis=-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))


def test_never_fewer_tokens_than_speculative_sampling_on_average():
    """Averaged over the draft's own draws, as the paper states it: here over many drafts of the same distributions."""
    inputs = random_cases(1, False, kinds=("close", "far", "sharp"))
    block, token = (expected_lengths(rule, inputs) for rule in (BlockVerification(), SpeculativeSampling()))
    assert block.mean() > token.mean()


def test_a_second_look_saves_a_prefix():
    """A rejected first token is saved by a second one that the target likes better than the draft does."""
    draft = np.log([[0.8, 0.2], [0.5, 0.5]])
    target = np.log([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])
    inputs = as_inputs([[0, 0]], [2], draft[None], target[None], draft[None], target[None], False)
    # a = 1, 0.5, 0.9: the last draw passes with 0.9, twice what a draw a token gives with 0.5.
    np.testing.assert_allclose(lengths_and_corrections(BlockVerification(), inputs)[0][0, 2], 0.9, atol=1e-6)
    np.testing.assert_allclose(lengths_and_corrections(SpeculativeSampling(), inputs)[0][0, 2], 0.5, atol=1e-6)

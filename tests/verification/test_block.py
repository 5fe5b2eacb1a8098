"""Block verification against its definition; its losslessness is enumerated in test_exact."""

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, random_cases, rows
from transcription import softmax

from kljudge_jax.verification import BlockVerification, SpeculativeSampling


@pytest.mark.parametrize("vocab, length", [(2, 3), (5, 4)])
def test_agrees_with_a_float64_transcription(vocab, length):
    inputs = random_cases(0, False, vocab=vocab, length=length)
    distributions, corrections = lengths_and_corrections(BlockVerification(), inputs)
    for case, distribution, correction in zip(rows(inputs), distributions, corrections, strict=True):
        tokens, count, draft, target = case[:4]
        p, q = softmax(target[: count + 1]), softmax(draft[:count])
        a = [1.0]
        for i in range(count):
            drawn, wanted = q[i, tokens[i]], p[i, tokens[i]]
            ratio = 0.0 if wanted == 0 else np.inf if drawn == 0 else wanted / drawn
            a.append(min(1.0, a[-1] * ratio) if a[-1] > 0 else 0.0)
        residuals = [np.maximum(a[n] * p[n] - q[n], 0) for n in range(count)]
        passes = [1.0]
        for n in range(1, count):
            gain = residuals[n].sum()
            passes.append(gain / (gain + 1 - a[n]) if gain + 1 - a[n] > 0 else 1.0)
        if count:
            passes.append(a[count])
        # Where the gain and what is lacking are both rounding, float32 may not see the same h.
        if any(abs(1 - a[n]) + residuals[n].sum() < 1e-4 for n in range(1, count)):
            continue
        expected = np.zeros(length + 1)
        for n in range(count + 1):
            expected[n] = passes[n] * np.prod([1 - passes[m] for m in range(n + 1, count + 1)])
        np.testing.assert_allclose(distribution, expected, atol=2e-5)
        for n in range(count + 1):
            weights = p[count] if n == count else residuals[n]
            total = weights.sum()
            if total > 1e-4:
                assert np.abs(correction[n] - weights / total).max() < 1e-5 + 1e-6 / total


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

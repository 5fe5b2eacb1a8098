"""Whether tokens that were drawn come from a target's own distribution, as Transformers computes it."""

import numpy as np
import scipy.special
import scipy.stats
from tiny_hf import hf_logits, hf_processed


def joint_distribution(model, prompt, vocab, temperature, top_k=0, top_p=1.0):
    """Probabilities `[V, V, V]` of the three tokens after a prompt, by Transformers' logits and warpers."""
    pairs = [[*prompt, a, b] for a in range(vocab) for b in range(vocab)]
    logits = hf_processed(hf_logits(model, pairs)[:, -3:], temperature, top_k, top_p)
    steps = scipy.special.softmax(logits.astype(np.float64), axis=-1).reshape(vocab, vocab, 3, vocab)
    first, second, third = steps[0, 0, 0], steps[:, 0, 1], steps[:, :, 2]
    return first[:, None, None] * second[:, :, None] * third


def p_value(tokens, distribution):
    """Of the chi-square test that `tokens` come from `distribution`; rare cells are counted as one."""
    places = np.ravel_multi_index(tokens.T, distribution.shape)
    counts, expected = np.bincount(places, minlength=distribution.size), distribution.ravel() * len(tokens)
    if counts[expected == 0].any():
        return 0.0
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    return scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue

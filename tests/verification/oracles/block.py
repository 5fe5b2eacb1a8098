"""Block verification: prefix weights a, and the largest n whose draw passes h_n."""

import numpy as np
from transcription import softmax

from kljudge_jax.verification import BlockVerification
from oracles.base import Case, Expected, Oracle, corrected
from oracles.exact import strict


def by_blocks(tokens, p, q, length):
    """The probability of each length, the residuals of the places, and how far h is from 0 / 0.

    Args:
      tokens: a draft. p, q: `[count + 1, V]` and `[count, V]`. length: K.
    """
    count, a = len(q), [1.0]
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
    lengths = np.zeros(length + 1)
    for n in range(count + 1):
        lengths[n] = passes[n] * np.prod([1 - each for each in passes[n + 1 :]])
    # Where the gain and what is lacking are both rounding, float32 may not see the same h: it is of 1e-7 by 1e-2.
    slack = min((abs(1 - a[n]) + residuals[n].sum() for n in range(1, count)), default=1.0)
    return lengths, residuals, slack / 10


def block(case: Case) -> Expected:
    if case.greedy:
        return strict(case)
    p, q = softmax(case.target), softmax(case.draft)
    lengths, residuals, slack = by_blocks(case.tokens, p, q, case.length)
    return Expected(lengths, corrected(case.target, residuals, False), slack)


ORACLES = [Oracle(BlockVerification(), block)]

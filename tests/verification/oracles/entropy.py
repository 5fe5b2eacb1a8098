"""Entropy as a test, and FLy: its gate, its window, and every pattern of the strict rule's decisions."""

import itertools
import math

import numpy as np
from transcription import above, entropy, softmax

from kljudge_jax.verification import EntropyThreshold, FLy
from oracles.base import Case, Expected, Oracle, corrected, excess, token_by_token


def unsure(threshold, model):
    def accept(place):
        if model == "target":
            passes, near = above(entropy(place.raw_p), threshold)
        else:
            passes, near = above(threshold, entropy(place.raw_q))
        return (1.0 if passes else place.strict), near

    return accept


def full(threshold, window):
    """The gate of entropy="full", which asks no draw."""

    def accept(place):
        passes, near = above(entropy(place.raw_p) / math.log(len(place.raw_p)), threshold)
        following = range(place.i + 1, min(place.i + window + 1, place.case.count))
        alone = all(int(np.argmax(place.case.raw_target[j])) == place.case.tokens[j] for j in following)
        return (1.0 if passes and alone else place.strict), near

    return accept


def gates(tokens, raw_target, threshold, window, length):
    """The window, which tokens may pass, and how near an entropy is to the threshold."""
    w, passes, near = min(window, length - 1), [], 1.0
    for i, token in enumerate(tokens):
        p = softmax(raw_target[i])
        h = -sum(a * math.log(a) for a in sorted(p, reverse=True)[:3] if a > 0)
        near = min(near, abs(h - threshold))
        passes.append(h >= threshold and p[token] > 0 and i + w < len(tokens))
    return w, passes, near


def decided(strict, passes, w):
    """How many tokens are kept, and which of them though the strict rule rejects them."""
    marks = []
    for i, ours in enumerate(strict):
        if not (ours or (passes[i] and all(strict[i + 1 : i + w + 1]))):
            break
        marks.append(not ours)
    return len(marks), marks


def fly(threshold, window):
    """Every pattern of strict decisions, one by one, with its probability; corrections as the strict rule's."""

    def expected(case: Case) -> Expected:
        tokens, positions = case.tokens[: case.count], case.positions()
        w, passes, near = gates(tokens, case.raw_target, threshold, window, case.length)
        chances, lengths = [place.strict for place in positions], np.zeros(case.length + 1)
        for pattern in itertools.product(*({s > 0, s >= 1} for s in chances)):
            chance = math.prod(s if ours else 1 - s for s, ours in zip(chances, pattern, strict=True))
            lengths[decided(pattern, passes, w)[0]] += chance
        return Expected(lengths, corrected(case.target, [excess(place) for place in positions], case.greedy), near)

    return expected


ORACLES = [
    *(
        Oracle(EntropyThreshold(threshold, model), token_by_token(unsure(threshold, model)))
        for threshold, model in ((0.8, "target"), (0.7, "draft"))
    ),
    *(
        Oracle(FLy(threshold, window), fly(threshold, window))
        for threshold, window in ((0.3, 6), (0.75, 1), (0.6, 0), (0.5, 2))
    ),
    *(Oracle(FLy(0.45, window, entropy="full"), token_by_token(full(0.45, window))) for window in (0, 1, 6)),
]

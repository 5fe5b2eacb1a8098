"""What rules read of two distributions, in float64 NumPy, written from the definitions and not from the package."""

import math

import numpy as np


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(p, q):
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += math.inf if b == 0 else a * (math.log(a) - math.log(b))
    return total


def kl_on_support(p, q):
    """KL(p || q) where q knows a part of the vocabulary, and how near p is to having half of itself elsewhere."""
    inside = p[q > 0].sum()
    outside = p[q == 0].sum()
    if outside > 0.5:
        return math.inf, outside - 0.5
    return kl(p[q > 0] / inside, q[q > 0]) - math.log(inside), 0.5 - outside if outside else 1.0


def above(value, threshold):
    """Whether value > threshold, as a probability, and how near the two are."""
    near = 1.0 if math.isinf(value) or math.isinf(threshold) else abs(value - threshold) / (1 + abs(threshold))
    return float(value > threshold), near


def entropy(p):
    return -sum(a * math.log(a) for a in p if a > 0)


def order(logits):
    """Ids, best first, ties by the lower id."""
    return sorted(range(len(logits)), key=lambda v: (-logits[v], v))

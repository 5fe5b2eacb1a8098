"""Rules in float64 NumPy, one position at a time, written from their definitions and not from the package."""

import dataclasses
import math

import numpy as np
from random_cases import KINDS, LENGTH, SIZE, VOCAB, lengths_and_corrections, random_cases, rows


@dataclasses.dataclass
class Position:
    """One real draft position i: p, q processed and raw, the token, and the rest of the draft."""

    i: int
    tokens: np.ndarray
    count: int
    p: np.ndarray
    q: np.ndarray
    raw_p: np.ndarray
    raw_q: np.ndarray
    raw_logits: np.ndarray
    all_raw_p: np.ndarray
    greedy: bool

    @property
    def token(self):
        return int(self.tokens[self.i])

    @property
    def strict(self):
        if self.greedy:
            return float(int(np.argmax(self.p)) == self.token)
        p, q = self.p[self.token], self.q[self.token]
        if p == 0:
            return 0.0
        return 1.0 if q == 0 else min(1.0, p / q)


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


def excess(position):
    return np.maximum(position.p - position.q, 0.0)


def target(position):
    return position.p


def check(rule, accept, residual=excess, *, seed=0, vocab=VOCAB, length=LENGTH, kinds=KINDS):
    """Compares a rule's distribution and corrections with a transcription, greedy and sampling.

    `accept(position)` gives the probability of accepting and how far the position is from the nearest threshold: a
    sequence that float32 may see on the other side of one is left out. `residual(position)` gives the weights of the
    correction when sampling.
    """
    for greedy in (True, False):
        inputs = random_cases(seed, greedy, vocab=vocab, length=length, kinds=kinds)
        distributions, corrections = lengths_and_corrections(rule, inputs)
        left_out = 0
        for case, distribution, rows_of_case in zip(rows(inputs), distributions, corrections, strict=True):
            tokens, count, draft, target_logits, raw_draft, raw_target = case
            p, raw_p = softmax(target_logits[: count + 1]), softmax(raw_target[: count + 1])
            q, raw_q = softmax(draft[:count]), softmax(raw_draft[:count])
            positions = [
                Position(i, tokens, count, p[i], q[i], raw_p[i], raw_q[i], raw_target[i], raw_p, greedy)
                for i in range(count)
            ]
            accepted = [accept(position) for position in positions]
            if any(slack < 1e-4 for _, slack in accepted):
                left_out += 1
                continue
            expected, reached = np.zeros(length + 1), 1.0
            for i, (probability, _) in enumerate(accepted):
                expected[i] = reached * (1 - probability)
                reached *= probability
            expected[count] = reached
            assert np.abs(distribution - expected).max() < 2e-5, (rule, case, distribution, expected)
            for n in range(count + 1):
                weights = p[count] if n == count else np.asarray(residual(positions[n]))
                total = weights.sum()
                if greedy:
                    weights, total = np.eye(vocab)[int(np.argmax(p[n]))], 1.0
                elif total == 0:
                    weights, total = p[n], 1.0
                elif total < 1e-4:
                    continue
                error = np.abs(rows_of_case[n] - weights / total).max()
                assert error < 1e-5 + 1e-6 / total, (rule, case, n, rows_of_case[n], weights / total)
        assert left_out < SIZE / 10

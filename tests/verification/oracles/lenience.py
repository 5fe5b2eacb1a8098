"""Lenience and mentored decoding: odds that are kinder to the draft."""

from transcription import above

from kljudge_jax.verification import Lenience, Mentored
from oracles.base import Oracle, target, token_by_token


def lenient(factor):
    def accept(place):
        token = place.token
        if place.greedy:
            ratio = place.raw_p[token] / place.raw_p.max()
            less, near = above(factor, ratio)
            return 1.0 - less, near if ratio < 1 else 1.0
        p, q = place.p[token], place.q[token]
        return (0.0 if p == 0 else 1.0 if q == 0 else min(1.0, p / (factor * q))), 1.0

    return accept


ORACLES = [
    *(Oracle(Lenience(factor), token_by_token(lenient(factor))) for factor in (0.4, 0.8)),
    Oracle(Mentored(0.3), token_by_token(lenient(0.7), target)),
]

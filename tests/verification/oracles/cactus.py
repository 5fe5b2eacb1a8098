"""Cactus: the target raised at the draft token."""

import math

import numpy as np
from transcription import order

from kljudge_jax.verification import Cactus
from oracles.base import Oracle, token_by_token


def raised(p, token, delta):
    """h: the target raised at the token."""
    g = min(1.0, p[token] + math.sqrt(2 * delta * p[token] * (1 - p[token])))
    h = p * ((1 - g) / (1 - p[token]) if p[token] < 1 else 0.0)
    h[token] = g
    return h


def cactus(delta):
    def accept(place):
        token = place.token
        if place.greedy:
            h = raised(place.raw_p, token, delta)
            best = np.sort(h)
            if order(place.raw_logits)[0] == token:
                return 1.0, 1.0
            return float(int(np.argmax(h)) == token), best[-1] - best[-2]
        g, q = raised(place.p, token, delta)[token], place.q[token]
        return (0.0 if g == 0 else 1.0 if q == 0 else min(1.0, g / q)), 1.0

    return accept


def residual(delta):
    return lambda place: np.maximum(raised(place.p, place.token, delta) - place.q, 0)


ORACLES = [Oracle(Cactus(delta), token_by_token(cactus(delta), residual(delta))) for delta in (0.15, 1.0)]

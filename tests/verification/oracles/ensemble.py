"""The ensemble: what is drafted follows a mixture of the two models."""

import numpy as np

from kljudge_jax.verification import Ensemble
from oracles.base import Oracle, token_by_token


def mixed(weight):
    def accept(place):
        token = place.token
        if place.greedy:
            mixture = weight * place.raw_p + (1 - weight) * place.raw_q
            best = np.sort(mixture)
            return float(int(np.argmax(mixture)) == token), best[-1] - best[-2]
        p, q = place.p[token], place.q[token]
        if p > 0 and q == 0:
            return 1.0, 1.0
        return (1 - weight if q == 0 else min(1.0, (weight * p + (1 - weight) * q) / q)), 1.0

    return accept


ORACLES = [Oracle(Ensemble(0.6), token_by_token(mixed(0.6)))]

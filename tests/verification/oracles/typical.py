"""Medusa's test: p(d) above a hard floor or a softer one."""

import math

from transcription import above, entropy

from kljudge_jax.verification import TypicalAcceptance
from oracles.base import Oracle, target, token_by_token


def typical(epsilon, alpha):
    def accept(place):
        return above(place.raw_p[place.token], min(epsilon, alpha * math.exp(-entropy(place.raw_p))))

    return accept


ORACLES = [
    Oracle(TypicalAcceptance(epsilon, alpha), token_by_token(typical(epsilon, alpha), target))
    for epsilon, alpha in ((0.3, 0.09), (0.4, 0.9))
]

"""Draws that are eased where the target is unsure: entropy verification and EARS."""

import math

from transcription import entropy

from kljudge_jax.verification import EARS, EntropyVerify
from oracles.base import Oracle, token_by_token


def eased(place, change):
    """The probability that a draw passes whose bar is `change`d, from p / q."""
    if place.greedy:
        return place.strict, 1.0
    p, q = place.p[place.token], place.q[place.token]
    if p == 0:
        return 0.0, 1.0
    return min(1.0, change(p / q)) if q else 1.0, 1.0


def by_entropy(threshold, alpha):
    def accept(place):
        factor = min(threshold, math.exp(-alpha * entropy(place.raw_p)))
        return eased(place, lambda ratio: ratio / factor)

    return accept


def by_top(tolerance):
    return lambda place: eased(place, lambda ratio: ratio + tolerance * (1 - place.raw_p.max()))


ORACLES = [
    *(
        Oracle(EntropyVerify(threshold, alpha), token_by_token(by_entropy(threshold, alpha)))
        for threshold, alpha in ((0.95, 0.4), (0.3, 0.0), (1.0, 2.5))
    ),
    *(Oracle(EARS(tolerance), token_by_token(by_top(tolerance))) for tolerance in (0.1, 0.6, 1.0)),
]

"""The controls, which judge nothing."""

from kljudge_jax.verification import AcceptAll, RandomAcceptance, SyntheticAcceptance
from oracles.base import Oracle, target, token_by_token

ORACLES = [
    Oracle(AcceptAll(), token_by_token(lambda place: (1.0, 1.0))),
    Oracle(RandomAcceptance(0.3), token_by_token(lambda place: (place.strict + 0.3 * (1 - place.strict), 1.0))),
    Oracle(SyntheticAcceptance(0.7), token_by_token(lambda place: (0.7, 1.0), target)),
]

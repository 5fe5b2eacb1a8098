"""The strict rules: min(1, p / q), and the target's argmax when greedy."""

from kljudge_jax.verification import GreedyExact, SpeculativeSampling
from oracles.base import Oracle, token_by_token

strict = token_by_token(lambda place: (place.strict, 1.0))

ORACLES = [Oracle(GreedyExact(), strict, modes=("greedy",)), Oracle(SpeculativeSampling(), strict)]

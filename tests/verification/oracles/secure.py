"""SecureSD: the strict rule on the first tokens of an answer."""

from kljudge_jax.verification import KLJudge, Secure, TypicalAcceptance
from oracles.base import Oracle, target, token_by_token
from oracles.kl_judge import judged
from oracles.typical import typical

ORACLES = [
    Oracle(Secure(KLJudge(0.4, 1.0), 2), token_by_token(judged(0.4, 1.0), first=2), reads=("position",)),
    Oracle(
        Secure(TypicalAcceptance(0.4, 0.9), 3), token_by_token(typical(0.4, 0.9), target, first=3), reads=("position",)
    ),
]

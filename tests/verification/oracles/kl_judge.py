"""The KL judge: KL(target || draft) below a threshold where the target is unsure, on the draft's support."""

from transcription import above, kl_on_support

from kljudge_jax.verification import KLJudge
from oracles.base import Oracle, token_by_token


def judged(threshold, confidence):
    def accept(place):
        (divergence, half), top = kl_on_support(place.raw_p, place.raw_q), place.raw_p.max()
        far, near = above(divergence, threshold)
        sure, nearly = above(top, confidence)
        return (place.strict if far or sure else 1.0), min(near, half, nearly if confidence < 1 else 1.0)

    return accept


ORACLES = [
    *(
        Oracle(KLJudge(threshold, confidence, first=0), token_by_token(judged(threshold, confidence)))
        for threshold, confidence in ((0.15, 0.9), (0.6, 1.0), (3.0, 0.6))
    ),
    Oracle(KLJudge(0.4), token_by_token(judged(0.4, 0.9), first=1), reads=("position",)),
]

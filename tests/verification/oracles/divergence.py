"""Fuzzy acceptance and R-fuzzy, by four divergences."""

import numpy as np
from transcription import above, kl, kl_on_support

from kljudge_jax.verification import DivergenceThreshold, RelaxedFuzzy
from oracles.base import Oracle, excess, target, token_by_token

MEASURES = {
    "js": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "kl_target_draft": lambda p, q: kl_on_support(p, q)[0],
    "kl_draft_target": lambda p, q: kl(q, p),
    "tv": lambda p, q: np.abs(p - q).sum() / 2,
}


def far(place, divergence, threshold):
    """Whether the models are too far apart, and how near the case is to the other answer."""
    too_far, near = above(MEASURES[divergence](place.raw_p, place.raw_q), threshold)
    return too_far, min(near, kl_on_support(place.raw_p, place.raw_q)[1] if divergence == "kl_target_draft" else 1.0)


def fuzzy(divergence, threshold, confidence=1.0):
    def accept(place):
        sure, nearly = above(place.raw_p.max(), confidence)
        too_far, near = far(place, divergence, threshold)
        nearly = nearly if confidence < 1 else 1.0
        return (place.strict, nearly) if sure else (1.0 - too_far, min(near, nearly))

    return accept


def by_confidence(confidence):
    """The correction: above the confidence the strict rule's, and elsewhere the target's own."""
    return lambda place: excess(place) if place.raw_p.max() > confidence else target(place)


def relaxed(divergence, threshold):
    def accept(place):
        too_far, near = far(place, divergence, threshold)
        return max(1.0 - too_far, place.strict), near

    return accept


ORACLES = [
    *(Oracle(DivergenceThreshold(name, 0.11), token_by_token(fuzzy(name, 0.11), target)) for name in MEASURES),
    Oracle(DivergenceThreshold("tv", 0.2, 0.6), token_by_token(fuzzy("tv", 0.2, 0.6), by_confidence(0.6))),
    *(Oracle(RelaxedFuzzy(0.11, name), token_by_token(relaxed(name, 0.11))) for name in MEASURES),
]

"""The rules by rank: top-k, relaxed thinking by distance and by ratio, MARS's margin."""

from transcription import above, order

from kljudge_jax.verification import MarginAcceptance, RelaxedThinking, RelaxedThinkingRatio, TopKAcceptance
from oracles.base import Oracle, excess, target, token_by_token
from oracles.divergence import by_confidence


def among(place, k):
    return place.token in order(place.raw_logits)[:k]


def top_k(k, confidence=1.0):
    def accept(place):
        sure, near = above(place.raw_p.max(), confidence)
        return (place.strict if sure else float(among(place, k))), near if confidence < 1 else 1.0

    return accept


def thinking(k, delta):
    def accept(place):
        gap = place.raw_p.max() - place.raw_p[place.token]
        far, near = above(gap, delta)
        return float(not far and among(place, k)), near if gap > 0 else 1.0

    return accept


def by_ratio(k, ratio):
    def accept(place):
        share = place.raw_p[place.token] / place.raw_p.max()
        less, near = above(ratio, share)
        return float(not less and among(place, k)), near if share < 1 else 1.0

    return accept


def inside(accept):
    """The test inside thinking blocks, and the strict rule outside."""
    return lambda place: accept(place) if place.case.section[place.i] else (place.strict, 1.0)


def by_section(place):
    return target(place) if place.case.section[place.i] else excess(place)


def margin(threshold):
    def accept(place):
        first, second = order(place.raw_logits)[:2]
        best = place.raw_logits[first]
        passes, near = above(place.raw_logits[second], threshold * best)
        if place.token != second or best <= 0:
            return place.strict, 1.0
        return (1.0 if passes else place.strict), near

    return accept


ORACLES = [
    Oracle(TopKAcceptance(2), token_by_token(top_k(2), target)),
    Oracle(TopKAcceptance(2, 0.6), token_by_token(top_k(2, 0.6), by_confidence(0.6))),
    Oracle(RelaxedThinking(3, 0.25), token_by_token(thinking(3, 0.25), target)),
    Oracle(
        RelaxedThinking(3, 0.4, section="thinking"),
        token_by_token(inside(thinking(3, 0.4)), by_section),
        reads=("section",),
    ),
    *(
        Oracle(RelaxedThinkingRatio(k, ratio), token_by_token(by_ratio(k, ratio), target))
        for k, ratio in ((3, 0.5), (2, 0.1), (5, 0.7))
    ),
    Oracle(
        RelaxedThinkingRatio(3, 0.4, section="thinking"),
        token_by_token(inside(by_ratio(3, 0.4)), by_section),
        reads=("section",),
    ),
    Oracle(MarginAcceptance(0.7), token_by_token(margin(0.7))),
]

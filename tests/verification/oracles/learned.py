"""Rules that ask a head: AutoJudge's linear judge, and the pivot-aware score with its floor."""

import math

import numpy as np
from heads import by_hand, random_head
from transcription import above, entropy, kl, kl_on_support

from kljudge_jax.verification import LinearJudge, PivotAware
from oracles.base import Oracle, token_by_token

TARGET, DRAFT = 3, 2  # sizes of the states of `cases`


def features(place, setup):
    """What a head reads at a draft token, and how near one of them is to being none."""
    states = {"DT": [place.case.target_hidden], "DD-DT": [place.case.draft_hidden, place.case.target_hidden]}
    if setup in states:
        return np.concatenate([each[place.i] for each in states[setup]]), 1.0
    p, q, token = place.raw_p, place.raw_q, place.token
    if setup == "pivot":
        return np.concatenate([place.case.target_hidden[place.i], [p[token], entropy(p)]]), 1.0
    first, second = sorted(p)[:-3:-1]
    divergence, half = kl_on_support(p, q)
    with np.errstate(divide="ignore"):
        logs = [np.log(p[token]), np.log(q[token])]
    return np.array([divergence, kl(q, p), entropy(p), entropy(q), first, first - second, *logs]), half


def important(place, head):
    """P(important), infinite where a feature is no number, and how near it is to that."""
    read, half = features(place, head.setup)
    return (by_hand(head, read) if np.isfinite(read).all() else math.inf), half


def linear(head, threshold, confidence):
    def accept(place):
        probability, half = important(place, head)
        passes, near = above(threshold, probability)
        sure, nearly = above(place.raw_p.max(), confidence)
        # A sum of products has the rounding of all of them.
        return (1.0 if passes and not sure else place.strict), min(near / 10, half, nearly if confidence < 1 else 1.0)

    return accept


def pivot(head, threshold, floor):
    def accept(place):
        score, _ = important(place, head)
        passes, near = above(threshold, score)
        below, nearly = above(floor, place.raw_p[place.token])
        return (1.0 if passes and not below else place.strict), min(near / 10, nearly)

    return accept


STATES = ("draft_hidden", "target_hidden")
HEADS = {setup: random_head(setup, TARGET, DRAFT) for setup in ("DT", "DD-DT", "logits")}
PIVOT = random_head("pivot", TARGET, DRAFT, hidden=4)

ORACLES = [
    *(
        Oracle(
            LinearJudge(HEADS[setup], threshold, confidence, first),
            token_by_token(linear(HEADS[setup], threshold, confidence), first=first),
            reads=(*STATES, "position"),
        )
        for setup, threshold, confidence, first in (
            ("DD-DT", 0.4, 1.0, 1),
            ("DT", 0.5, 0.6, 0),
            ("logits", 0.5, 1.0, 1),
        )
    ),
    *(
        Oracle(PivotAware(PIVOT, 0.5, floor), token_by_token(pivot(PIVOT, 0.5, floor)), reads=STATES)
        for floor in (0.1, 1e-4)
    ),
]

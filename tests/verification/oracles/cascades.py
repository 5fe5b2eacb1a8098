"""Speculative cascades OPT and TOK: which of the two models is followed."""

import numpy as np

from kljudge_jax.verification import CascadeOpt, CascadeToken
from oracles.base import Oracle, token_by_token


def opt(alpha):
    def accept(place):
        p, q = place.raw_p, place.raw_q
        if (p == q).all():
            return 1.0, 1.0
        room = q.max() - p.max() + alpha * np.abs(p - q).sum() / 2
        return (1.0 if room >= 0 else place.strict), abs(room)

    return accept


def near_tokens(raw_p, alpha):
    return raw_p >= (1 - alpha) * raw_p.max()


def mixture(p, q, near):
    """What drafted tokens follow."""
    return np.where(near, q, 0) + q[~near].sum() * p


def tok(alpha):
    def accept(place):
        near = near_tokens(place.raw_p, alpha)
        off = np.abs(place.raw_p / place.raw_p.max() - (1 - alpha))
        slack = off[place.raw_p < place.raw_p.max()].min(initial=1.0)
        if place.greedy:
            return max(float(near[place.token]), place.strict), slack
        pi, q = mixture(place.p, place.q, near)[place.token], place.q[place.token]
        return (min(1.0, pi / q) if q else float(pi > 0 or near[place.token])), slack

    return accept


def owed(alpha):
    def residual(place):
        near = near_tokens(place.raw_p, alpha)
        return np.maximum(mixture(place.p, place.q, near) - place.q, 0)

    return residual


ORACLES = [
    *(Oracle(CascadeOpt(alpha), token_by_token(opt(alpha))) for alpha in (-0.5, 0.0, 0.3, 0.9)),
    *(Oracle(CascadeToken(alpha), token_by_token(tok(alpha), owed(alpha))) for alpha in (0.15, 0.45, 0.8)),
]

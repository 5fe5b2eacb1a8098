"""What speculative decoding should cost: tokens per second from an acceptance rate and the times of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from kljudge_jax.generation.stats import Cycle


def expected_tokens(rate: float, draft_length: int) -> float:
    """Tokens committed per cycle where each draft token is accepted with probability `rate` on its own.

    (1 - a^(K+1)) / (1 - a), correction or bonus included: eq. 1 of Leviathan et al., arXiv 2211.17192.
    """
    return float(sum(rate**i for i in range(draft_length + 1)))


def acceptance_rate(cycles: Iterable[Cycle]) -> float | None:
    """The rate that makes what was accepted likeliest: accepted over tested draft tokens; None if none was tested.

    A token after a rejected one was not tested.
    """
    accepted = rejected = 0
    for cycle in cycles:
        accepted += cycle.accepted
        rejected += cycle.accepted < cycle.drafted
    return accepted / (accepted + rejected) if accepted + rejected else None


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The time of a cycle with K draft tokens, K c + v(K), in seconds.

    Attributes:
      draft_step: c, what one draft token takes.
      passes: by positions scored, K + 1, what a target pass over so many takes; straight lines between those given.
      overhead: by draft length, what verdicts and commit take; likewise.
    """

    draft_step: float
    passes: Mapping[int, float]
    overhead: Mapping[int, float]

    @property
    def longest(self) -> int:
        """The longest draft whose pass is known."""
        return max(self.passes) - 1

    def pass_seconds(self, draft_length: int) -> float:
        """v(K): pass, verdicts and commit."""
        return _between(self.passes, draft_length + 1) + _between(self.overhead, draft_length)

    def cycle_seconds(self, draft_length: int) -> float:
        return draft_length * self.draft_step + self.pass_seconds(draft_length)

    def tokens_per_second(self, rate: float, draft_length: int) -> float:
        """L(K) / (K c + v(K)), of one row; K = 0 is plain decoding."""
        return expected_tokens(rate, draft_length) / self.cycle_seconds(draft_length)

    def best_length(self, rate: float) -> int:
        """The K from 0 to `longest` with the most tokens per second; 0 says that speculation does not pay."""
        return int(np.argmax([self.tokens_per_second(rate, k) for k in range(self.longest + 1)]))


def nondecreasing(passes: Mapping[int, float]) -> dict[int, float]:
    """Times by positions, made never to fall as positions grow: the nearest such in squares (isotonic regression).

    A pass over more positions does all the work of one over fewer; that it was timed as less is noise, and a length
    chosen by it is too.
    """
    from scipy.optimize import isotonic_regression

    places = sorted(passes)
    nearest = isotonic_regression([passes[place] for place in places]).x
    return dict(zip(places, nearest.tolist(), strict=True))


def advice(model: CostModel, rate: float) -> str:
    """The recommended draft length in words."""
    best = model.best_length(rate)
    if best == 0:
        return f"speculation does not pay: plain decoding is faster than any draft of up to {model.longest} tokens"
    gain = model.tokens_per_second(rate, best) / model.tokens_per_second(rate, 0)
    longer = ", the longest that was measured: try a longer one" if best == model.longest else ""
    return f"draft {best} tokens, for {gain:.2f} times the speed of plain decoding{longer}"


def _between(known: Mapping[int, float], at: int) -> float:
    places = sorted(known)
    return float(np.interp(at, places, [known[place] for place in places]))

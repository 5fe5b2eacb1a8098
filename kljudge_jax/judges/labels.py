"""Labels of other papers than AutoJudge's, as pure functions: each a score that is larger for an important token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_wrong_labels(offsets: Sequence[tuple[int, int]], wrong_from: int | None) -> np.ndarray:
    """Judge Decoding's labels of an answer's tokens: bool `[T]`, True from the first wrong token on.

    Source: arXiv 2501.19309 (second-hand).

    Args:
      offsets: where each token begins and ends in the answer, in characters.
      wrong_from: the character that the first wrong token holds; None for a right answer.
    """
    return np.array([wrong_from is not None and end > wrong_from for _, end in offsets], bool)


def likelihood_difference(original: np.ndarray, substituted: np.ndarray, at: int, window: int = 20) -> float:
    """SelfJudge's score: how much less likely the target finds the text with the token put in, in nats.

    The sum of log-probabilities of the token at `at` and the next `window`, original less substituted; shorter at the
    text's end. Source: arXiv 2510.02329 (second-hand).

    Args:
      original: f32 `[T]`, log-probability of each token of the text under the target.
      substituted: f32 `[T]`, the same once token `at` is another.
    """
    end = at + 1 + window
    return float(np.sum(np.float64(original[at:end])) - np.sum(np.float64(substituted[at:end])))


def pivot_score(same: Sequence[bool]) -> float:
    """Pivot-aware decoding's score: the share of rollouts after the token that lose the answer.

    Source: arXiv 2511.00351 (second-hand).
    """
    return float(1 - np.mean(np.asarray(same, float)))

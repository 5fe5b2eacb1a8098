"""How well scores tell important tokens from others: ROC-AUC, and the table that thresholds are chosen from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# AutoJudge's (arXiv 2504.20039): 26 quantiles are swept, and a recall of 90 % of important tokens is advised.
_QUANTILES = 26
_WANTED_RECALL = 0.9


@dataclasses.dataclass(frozen=True)
class ThresholdRow:
    """What one threshold would do to the mismatches it was measured on.

    Attributes:
      threshold: tokens whose P(important) is below it pass.
      recall: share of important tokens that do not pass.
      precision: share of important ones among the tokens that do not pass; 1 where all pass.
      passed: share of all mismatches that pass.
    """

    threshold: float
    recall: float
    precision: float
    passed: float


def roc_auc(important: np.ndarray, scores: np.ndarray) -> float:
    """The probability that an important token scores above another one, ties counted half; NaN without both kinds."""
    from scipy.stats import rankdata

    important = np.asarray(important).astype(bool)
    positives, negatives = int(important.sum()), int((~important).sum())
    if not positives or not negatives:
        return float("nan")
    return float((rankdata(scores)[important].sum() - positives * (positives + 1) / 2) / positives / negatives)


def threshold_table(important: np.ndarray, probabilities: np.ndarray) -> list[ThresholdRow]:
    """A row at each of 26 evenly spaced quantiles of the probabilities.

    AutoJudge's table counts as stopped what is above a threshold, where its own decoding stops what is at it too; here
    both stop it, so that the table says what decoding does.
    """
    important = np.asarray(important).astype(bool)
    rows = []
    for threshold in np.quantile(probabilities, np.linspace(0, 1, _QUANTILES)):
        stopped = probabilities >= threshold
        caught = int((stopped & important).sum())
        rows.append(
            ThresholdRow(
                float(threshold),
                caught / max(int(important.sum()), 1),
                caught / int(stopped.sum()) if stopped.any() else 1.0,
                float(1 - stopped.mean()),
            )
        )
    return rows


def advised(table: Sequence[ThresholdRow]) -> ThresholdRow:
    """The row that lets most pass among those that stop 90 % of important tokens; the strictest if none does."""
    return max((row for row in table if row.recall >= _WANTED_RECALL), key=lambda r: r.passed, default=table[0])

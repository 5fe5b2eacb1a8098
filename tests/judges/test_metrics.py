import itertools

import numpy as np
import pytest

from kljudge_jax.judges.metrics import ThresholdRow, advised, roc_auc, threshold_table

random = np.random.default_rng(0)


@pytest.mark.parametrize("decimals", [8, 1])  # without ties, and with many
def test_auc_is_the_share_of_ordered_pairs(decimals):
    scores, important = np.round(random.random(200), decimals), random.random(200) < 0.3
    above = scores[important][:, None] - scores[~important]
    assert roc_auc(important, scores) == pytest.approx(((above > 0) + (above == 0) / 2).mean())


def test_auc_of_one_kind_is_no_number():
    assert np.isnan(roc_auc(np.ones(3), np.arange(3)))


def test_the_table_counts_what_the_rule_stops():
    """At the threshold itself a token is stopped, as `LinearJudge` does it: P(important) has to be below."""
    probabilities = np.array([0.5, 0.5, 0.5, 0.1])
    rows = [row for row in threshold_table(np.array([1, 1, 0, 0]), probabilities) if row.threshold == 0.5]
    assert rows and all((row.recall, row.passed) == (1.0, 0.25) for row in rows)


def test_the_table_by_hand():
    important, probabilities = np.array([1, 0, 1, 0]), np.array([0.9, 0.6, 0.4, 0.1])
    table = threshold_table(important, probabilities)
    assert len(table) == 26 and table[0] == ThresholdRow(0.1, 1.0, 0.5, 0.0) and table[-1].threshold == 0.9
    assert (table[-1].recall, table[-1].precision, table[-1].passed) == (0.5, 1.0, 0.75)
    # The largest that still stops both important ones stops the three from 0.4 on.
    best = advised(table)
    assert best.recall == 1.0 and best.passed == 0.25 and 0.1 < best.threshold <= 0.4
    assert all(a.recall >= b.recall and a.passed <= b.passed for a, b in itertools.pairwise(table))

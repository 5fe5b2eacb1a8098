"""The comparison on data whose answers are known."""

import dataclasses
import json

import numpy as np
import pytest
from judge_data import PAIR, made_dataset
from scipy import stats

from kljudge_jax.errors import InputError
from kljudge_jax.judges.correspondence import correspond, save_report
from kljudge_jax.judges.metrics import roc_auc
from kljudge_jax.verification.head import Head


@pytest.fixture(scope="module")
def data():
    """Shifts before the token that decide its first target state, and shifts behind it that say nothing."""
    data = made_dataset(questions=60)
    gap = data["gap"].copy()
    gap[:, 0] = 5 + gap[:, 1:].mean(axis=1) + data["target_hidden"][:, 0]
    return dataclasses.replace(data, columns={**data.columns, "gap": gap})


@pytest.fixture(scope="module")
def head():
    """A judge that reads the first target state, on which the made KL depends."""
    kernel = np.zeros((10, 1), np.float32)
    kernel[4] = 1
    return Head(np.zeros(10, np.float32), np.ones(10, np.float32), ((kernel, np.zeros(1, np.float32)),), "DD-DT", PAIR)


@pytest.fixture(scope="module")
def found(data, head):
    return correspond(data, head)


def test_what_is_known_is_found(data, head, found):
    logit = data["target_hidden"][:, 0]
    assert not found.trained_on and found.rows == len(data) and sum(d.rows for d in found.deciles) == len(data)
    assert found.rank_correlation["KL(target, draft)"].value == pytest.approx(1.0)
    entropy = found.rank_correlation["target entropy"]
    assert entropy.value == pytest.approx(stats.spearmanr(logit, data.primitive("target_entropy")).statistic)
    assert entropy.low < entropy.value < entropy.high and entropy.low < 0 < entropy.high
    assert found.auc["the judge"].value == pytest.approx(roc_auc(data["important"], logit))
    assert found.auc["the judge"].value == pytest.approx(found.auc["KL(target, draft)"].value)
    assert found.auc["target entropy"].value == pytest.approx(
        roc_auc(data["important"], -data.primitive("target_entropy"))
    )
    assert found.explained["before"] > 0.99 and found.explained["after"] < 0.02
    assert found.second_order["rank correlation"] == pytest.approx(1.0)
    assert found.second_order["ratio"] == pytest.approx(1.5)
    means = [decile.kl for decile in found.deciles]
    lowest = np.argsort(logit)[: found.deciles[0].rows]
    assert means == sorted(means) and means[0] == pytest.approx(
        data.primitive("kl_target_draft")[lowest].mean(), rel=1e-5
    )


def test_a_shift_of_all_logits_at_once_explains_nothing(data, head, found):
    moved = {**data.columns, "gap": data["gap"] + np.float32(np.random.default_rng(0).normal(size=(len(data), 1)) * 9)}
    again = correspond(dataclasses.replace(data, columns=moved), head)
    assert again.explained["before"] == pytest.approx(found.explained["before"], abs=1e-4)


def test_the_report(found, tmp_path):
    pytest.importorskip("matplotlib")
    assert [path.name for path in save_report(found, tmp_path)] == [
        f"correspondence.{e}" for e in ("json", "md", "png")
    ]
    assert json.loads((tmp_path / "correspondence.json").read_text())["rows"] == found.rows
    text = (tmp_path / "correspondence.md").read_text()
    assert text.count("\n| ") == 1 + 10 + 1 + 7 and "KL(target, draft)" in text
    assert f"explains, on questions it has not seen, {found.explained['before']:.1%} (before the token)" in text
    assert (tmp_path / "correspondence.png").read_bytes()[1:4] == b"PNG"


def test_another_pair_or_too_little_is_refused(data, head):
    with pytest.raises(InputError, match="the data is of"):
        correspond(data, dataclasses.replace(head, pair=dataclasses.replace(PAIR, target_name="other")))
    with pytest.raises(InputError, match="10 questions"):
        correspond(made_dataset(questions=5), head)

"""From mined data to a judge in a folder to a report, as the commands do it."""

import pytest
from judge_data import PAIR, made_dataset

from kljudge_jax.errors import InputError
from kljudge_jax.judges.dataset import Dataset, DatasetWriter, QuestionRecord
from kljudge_jax.judges.jobs import asked_in, correspond, shares_questions, train_judge
from kljudge_jax.judges.storage import read_manifest
from kljudge_jax.judges.training import Options
from kljudge_jax.verification import parse_verifier


def test_from_data_to_judge_to_report(tmp_path):
    made = made_dataset()
    with DatasetWriter(tmp_path / "data", PAIR, {"task": "made"}, 9) as writer:
        rows = [{name: values[i] for name, values in made.columns.items()} for i in range(len(made))]
        writer.append([({"question": q}, [r for r in rows if r["question"] == q]) for q in range(40)])
    judge = train_judge(tmp_path / "data", tmp_path / "judge", Options(grid=(0.01, 1.0)))
    manifest = read_manifest(tmp_path / "judge")
    assert manifest.training["best"]["validation_auc"] == judge.best.validation_auc
    assert manifest.data == {"task": "made", "asked": []} and len(manifest.training["table"]) == 26
    rule = parse_verifier(f"judge:{tmp_path / 'judge'},{judge.advised_threshold}", greedy=True)
    assert (rule.head.mean == judge.head.mean).all()
    found, files = correspond(tmp_path / "data", tmp_path / "judge", tmp_path / "report")
    assert found.auc["the judge"].value > 0.85 and files[0].is_file()
    assert found.trained_on and "trained on some of these very questions" in files[1].read_text()
    with pytest.raises(InputError, match="not an empty folder"):
        train_judge(tmp_path / "data", tmp_path / "judge")


def asked(*digests):
    return [QuestionRecord(question=i, asked=digest, first_row=0, rows=0) for i, digest in enumerate(digests)]


def test_a_judge_knows_questions_that_it_was_fitted_to():
    seen = Dataset(PAIR, {"task": "t", "split": "train", "seed": 7, "x": 1}, asked("a", "b"), {})
    more = Dataset(PAIR, {"task": "t", "split": "all", "seed": 8}, asked("b"), {})
    new = Dataset(PAIR, seen.origin, asked("c"), {})
    silent = Dataset(PAIR, {"task": "t", "split": "train", "seed": 7, "x": 2}, asked(""), {})
    fitted_to = {**seen.origin, "asked": asked_in(seen)}
    assert [shares_questions(fitted_to, data) for data in (seen, more, new, silent)] == [True, True, False, True]
    assert not shares_questions(fitted_to, Dataset(PAIR, {"task": "u"}, asked(""), {}))

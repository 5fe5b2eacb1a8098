"""What is finished is found again, and what belongs to another evaluation is not."""

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.report.harness import HarnessRow
from kljudge_jax.evaluation.result_store import ResultStore

ASKED = {"target": "big", "limit": 5, "nested": (1, 2)}
ROW = HarnessRow(
    rule="exact", task="sums", metric="right", filter="none", n=1, value=0.5, stderr=None, cases={"0": 0.5}, tokens=1,
    cycles=1, failed=0,
)  # fmt: skip


def test_what_was_added_is_there_for_the_next_run(tmp_path):
    first = ResultStore(tmp_path / "f.jsonl", ASKED)
    assert ("exact", "sums") not in first
    first.add(("exact", "sums"), [ROW], 1)
    again = ResultStore(tmp_path / "f.jsonl", ASKED)
    assert again["exact", "sums"].rows == (ROW,) and again["exact", "sums"].failed == 1


def test_another_evaluation_begins_anew(tmp_path):
    ResultStore(tmp_path / "f.jsonl", ASKED).add(("exact", "sums"), [], 0)
    assert ("exact", "sums") not in ResultStore(tmp_path / "f.jsonl", ASKED | {"limit": 6})


def test_a_line_cut_short_is_dropped(tmp_path):
    ResultStore(tmp_path / "f.jsonl", ASKED).add(("exact", "sums"), [], 0)
    with (tmp_path / "f.jsonl").open("a") as file:
        file.write('{"rule": "kl')
    again = ResultStore(tmp_path / "f.jsonl", ASKED)
    assert ("exact", "sums") in again
    again.add(("kl:0.4", "sums"), [], 0)
    assert ("kl:0.4", "sums") in ResultStore(tmp_path / "f.jsonl", ASKED)


def test_a_damaged_line_is_named(tmp_path):
    store = ResultStore(tmp_path / "f.jsonl", ASKED)
    store.add(("exact", "sums"), [ROW], 0)
    text = (tmp_path / "f.jsonl").read_text()
    (tmp_path / "f.jsonl").write_text(text.replace('"failed": 0}\n', '"failed": -1}\n'))
    with pytest.raises(InputError, match=r"f\.jsonl, line 2, field failed: .*: delete the file"):
        ResultStore(tmp_path / "f.jsonl", ASKED)

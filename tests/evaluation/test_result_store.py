"""What is finished is found again, and what belongs to another evaluation is not."""

from kljudge_jax.evaluation.result_store import ResultStore

ASKED = {"target": "big", "limit": 5}


def test_what_was_added_is_there_for_the_next_run(tmp_path):
    first = ResultStore(tmp_path / "f.jsonl", ASKED)
    assert ("exact", "sums") not in first
    first.add(("exact", "sums"), [{"value": 0.5}], 1)
    again = ResultStore(tmp_path / "f.jsonl", ASKED)
    assert again["exact", "sums"]["rows"] == [{"value": 0.5}] and again["exact", "sums"]["failed"] == 1


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

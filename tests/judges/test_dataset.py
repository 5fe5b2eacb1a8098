"""A dataset comes back as it was written, and a kill at any byte costs no finished question."""

import json

import numpy as np
import pytest
from judge_data import PAIR, made_dataset

from kljudge_jax.errors import InputError
from kljudge_jax.judges.dataset import DatasetWriter, columns_of, gap_ids, read_dataset
from kljudge_jax.verification.features import PRIMITIVES, SETUPS

ORIGIN = {"task": "made", "seed": 1}


def write(folder, data, questions, origin=ORIGIN):
    """Questions of a made dataset, in the order given."""
    with DatasetWriter(folder, PAIR, origin, 9) as writer:
        for i in questions:
            rows = np.flatnonzero(data["question"] == i)
            writer.append([({"question": i, "status": "mined"}, [{n: data[n][r] for n in data.columns} for r in rows])])
        return writer.finished


def same(found, expected, questions):
    rows = np.flatnonzero(np.isin(expected["question"], questions))
    for name in columns_of(PAIR, 9):
        np.testing.assert_array_equal(found[name], expected[name][rows], err_msg=name)


def test_rows_come_back_in_the_order_of_their_questions(tmp_path):
    data = made_dataset(questions=5, each=3)
    assert write(tmp_path, data, [2, 0, 4]) == {0, 2, 4}
    same(read_dataset(tmp_path), data, [0, 2, 4])
    assert write(tmp_path, data, [1, 3]) == {0, 1, 2, 3, 4}
    found = read_dataset(tmp_path)
    same(found, data, range(5))
    assert found.pair == PAIR and found.origin == ORIGIN and [r.question for r in found.questions] == [*range(5)]
    raw = np.fromfile(tmp_path / "columns" / "target_hidden.bin", "<f4").reshape(-1, 6)
    np.testing.assert_array_equal(raw[:3], data["target_hidden"][6:9])


def test_a_question_without_rows_is_finished_too(tmp_path):
    with DatasetWriter(tmp_path, PAIR, ORIGIN, 0) as writer:
        writer.append([({"question": 0, "status": "mined"}, [])])
    found = read_dataset(tmp_path)
    assert len(found) == 0 and found["gap"].shape == (0, 0) and len(found.questions) == 1


def test_a_kill_anywhere_leaves_whole_questions(tmp_path):
    data, random = made_dataset(questions=4, each=3), np.random.default_rng(0)
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        write(folder, data, [0, 1])
        sizes = {path: path.stat().st_size for path in [*(folder / "columns").iterdir(), folder / "questions.jsonl"]}
        write(folder, data, [2])
        # What is written last is cut first: the line, or a column while the line is not there.
        line_cut = int(random.integers(0, 40)) if attempt % 2 else None
        for path, size in sizes.items():
            grown = path.stat().st_size - size
            if path.suffix == ".jsonl":
                kept = size + (line_cut if line_cut is not None else 0)
            else:
                kept = size + (grown if line_cut is not None else int(random.integers(0, grown + 1)))
            with path.open("r+b") as file:
                file.truncate(kept)
        same(read_dataset(folder), data, [0, 1])
        assert write(folder, data, [3, 2]) == {0, 1, 2, 3}
        same(read_dataset(folder), data, range(4))


def test_another_dataset_or_a_damaged_one_is_refused(tmp_path):
    data = made_dataset(questions=2, each=3)
    write(tmp_path / "a", data, [0])
    with pytest.raises(InputError, match="its seed differs"):
        write(tmp_path / "a", data, [1], {"task": "made", "seed": 2})
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_dataset(tmp_path)
    with DatasetWriter(tmp_path / "a", PAIR, ORIGIN, 9), pytest.raises(InputError, match="another process"):
        DatasetWriter(tmp_path / "a", PAIR, ORIGIN, 9)
    (tmp_path / "a" / "columns" / "score.bin").write_bytes(b"")
    for touch in (read_dataset, lambda folder: write(folder, data, [1])):
        with pytest.raises(InputError, match="shorter than"):
            touch(tmp_path / "a")
    head = json.loads((tmp_path / "a" / "dataset.json").read_text())
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(head | {"version": 9}))
    with pytest.raises(InputError, match="is of version 9, and this version reads 1"):
        read_dataset(tmp_path / "a")


def test_features_are_read_off_the_columns():
    data = made_dataset(questions=2, each=3)
    assert {setup: data.features(setup).shape[1] for setup in SETUPS} == {
        "DT": 6, "DD": 4, "DD-DT": 10, "logits": 8, "pivot": 8
    }  # fmt: skip
    np.testing.assert_array_equal(data.features("DD-DT")[:, :4], data["draft_hidden"])
    np.testing.assert_array_equal(
        data.primitive("draft_entropy"), data["primitives"][:, PRIMITIVES.index("draft_entropy")]
    )
    assert data.relabelled(2.0)["important"].sum() == (data["score"] > 2).sum() != data["important"].sum()


def test_gaps_are_of_all_tokens_or_of_some_spread_evenly():
    assert gap_ids(9, 20).tolist() == [*range(9)]
    assert gap_ids(1001, 11).tolist() == [*range(0, 1001, 100)]


def test_a_notebook_shows_where_rows_come_from_a_line_each(tmp_path):
    data = made_dataset(questions=2, each=3)
    origin = ORIGIN | {"weights": {"target": "ab12", "draft": "cd34"}, "ignored": [1, 2]}
    write(tmp_path, data, [0, 1], origin)
    shown = read_dataset(tmp_path)._repr_html_()
    assert "weights, target" in shown and "ab12" in shown and "cd34" in shown
    assert "{'" not in shown and "{&" not in shown and "ignored" not in shown

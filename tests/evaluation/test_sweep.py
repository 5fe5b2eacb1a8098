"""Sweeps: what they run, keep and go on with, and the figures made of it."""

import dataclasses
import json

import pytest
from tiny_pairs import text_pair

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation import sweep
from kljudge_jax.evaluation.statistics import mcnemar, ratio_interval, wilson_interval
from kljudge_jax.evaluation.sweep import Cell, Plan, grid, markdown_table, read_records, run_sweep, summarise
from kljudge_jax.tasks import Problem


class Letters:
    """A task: an answer is right if it holds the problem's letter."""

    name = "letters"

    def problems(self, split="test", n=200, seed=7):
        return [Problem(f"letters/{i}", f"text {seed} {i}", "abcdefghij"[i % 10]) for i in range(n)]

    def check(self, problem, text):
        return problem.answer in text


PLAN = Plan(grid(["none", "exact", "kl:4.0"], [4]), n=8, batch=4, max_new_tokens=24)


@pytest.fixture(scope="module")
def pair():
    return text_pair()


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """A folder that holds a whole sweep, what it returned, and what it reported."""
    folder, lines = tmp_path_factory.mktemp("sweep"), []
    return folder, run_sweep(pair, Letters(), PLAN, folder, lines.append), lines


def record(rule, length, problem, right, **counts):
    given = {"tokens": 10, "cycles": 5, "drafted": 20, "accepted": 5, "relaxed": 0, "failed": 0, "finish": "eos"}
    given |= {"batch": problem // 2, "seconds": 2.0, "token_ids": [problem]} | counts
    return {"rule": rule, "draft_length": length, "problem": f"p/{problem}", "right": right, **given}


def test_the_grid_holds_plain_decoding_once():
    cells = grid(["none", "exact", "kl:0.4", "exact"], [8, 4, 8])
    assert cells == (Cell("none", 0), Cell("exact", 8), Cell("kl:0.4", 8), Cell("exact", 4), Cell("kl:0.4", 4))
    assert [cell.name for cell in cells[:2]] == ["none", "exact @ 8"]


def test_the_grid_holds_baselines_that_draft_nothing_once():
    cells = grid(["hf", "lookup:3", "draft", "hf:assisted"], [4, 8])
    assert [cell.name for cell in cells] == [
        *("hf", "draft"),
        *("lookup:3 @ 4", "hf:assisted @ 4"),
        *("lookup:3 @ 8", "hf:assisted @ 8"),
    ]


def test_a_baseline_that_cannot_run_is_refused_before_anything_is_written(pair, tmp_path):
    alone = dataclasses.replace(pair, draft=None)
    plan = dataclasses.replace(PLAN, cells=grid(["none", "draft"], [4]))
    with pytest.raises(InputError, match="'draft' needs a draft model"):
        run_sweep(alone, Letters(), plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_problem_is_answered_in_every_cell(finished):
    folder, records, lines = finished
    assert len(records) == 8 * 3 == len({(r["rule"], r["draft_length"], r["problem"]) for r in records})
    assert [r["rule"] for r in records] == 2 * (["none"] * 4 + ["exact"] * 4 + ["kl:4.0"] * 4)  # cells take turns
    assert list(read_records(folder / "answers.jsonl")) == records
    assert len(lines) == 6 and "problems 5-8 of 8, exact @ 4" in lines[4]
    for answer in records:
        letter = "abcdefghij"[int(answer["problem"].partition("/")[2])]
        assert answer["right"] == (letter in answer["text"])
        assert len(answer["token_ids"]) == answer["tokens"]
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["task"] == "letters" and plan["dtype"] == "float32" and plan["machine"]["backend"] == "cpu"


def test_exact_answers_are_the_plain_ones_and_judged_ones_are_not(finished):
    plain, exact, judged = summarise(finished[1])
    assert exact["same_text"] == 8 and exact["p"] == 1.0 and exact["relaxed_per_answer"] == 0
    assert judged["same_text"] < 8 and judged["relaxed_per_answer"] > 0
    assert judged["mean_acceptance_length"] > exact["mean_acceptance_length"] > plain["mean_acceptance_length"] == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.62, 0.999])
def test_a_killed_sweep_goes_on_where_it_was(finished, pair, tmp_path, share):
    folder, records, _ = finished
    whole = (folder / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(whole[: int(len(whole) * share)])
    (tmp_path / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    lines = []
    again = run_sweep(pair, Letters(), PLAN, tmp_path, lines.append)

    def told(records):
        return sorted((r["rule"], r["problem"], r["text"], r["right"], tuple(r["token_ids"])) for r in records)

    assert told(again) == told(records) == told(read_records(tmp_path / "answers.jsonl"))
    assert len(lines) == 6 - int(len(whole[: int(len(whole) * share)].splitlines(True)[:-1]) // 4)
    assert run_sweep(pair, Letters(), PLAN, tmp_path, lambda line: pytest.fail("all is done")) == list(again)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 8}, "plan"), ({"max_new_tokens": 25}, "plan"), ({"cells": PLAN.cells[:2]}, "plan")],
)
def test_another_plan_is_refused(finished, pair, change, named):
    with pytest.raises(InputError, match=f"holds another sweep .its {named} differs.: name a new folder"):
        run_sweep(pair, Letters(), dataclasses.replace(PLAN, **change), finished[0])


def test_another_pair_or_task_is_refused(finished, pair):
    with pytest.raises(InputError, match="draft"):
        run_sweep(dataclasses.replace(pair, draft_name="other"), Letters(), PLAN, finished[0])
    other = Letters()
    other.name = "words"
    with pytest.raises(InputError, match="task"):
        run_sweep(pair, other, PLAN, finished[0])


def test_a_folder_that_cannot_hold_results_is_refused(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder of results"):
        run_sweep(pair, Letters(), PLAN, tmp_path / "file")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InputError, match="is damaged: name a new folder"):
        run_sweep(pair, Letters(), PLAN, tmp_path)


def test_a_last_line_that_was_cut_is_dropped_from_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert list(read_records(path)) == []
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "\xc3')
    assert list(read_records(path)) == [{"a": 1}, {"a": 2}]
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_figures_of_hand_made_records():
    plain = [record("none", 0, i, i < 3, cycles=10, drafted=0, accepted=0, seconds=8.0) for i in range(4)]
    judged = [record("kl:0.4", 8, i, i != 1, relaxed=i, token_ids=[i * (i < 2)]) for i in range(3)]
    judged.append(record("kl:0.4", 8, 3, False, tokens=14, cycles=7, finish="length", failed=1))
    first, second = summarise([*plain, *judged])
    assert (first["rule"], first["draft_length"], first["n"], first["right"]) == ("none", 0, 4, 3)
    assert first["accuracy"] == 0.75 and first["accuracy_interval"] == wilson_interval(3, 4)
    assert first["tokens_per_second"] == 40 / 16  # two batches of two answers, 8 s each
    assert (first["speed"], first["p"], first["same_text"]) == (1.0, 1.0, 4)

    assert (second["n"], second["right"]) == (4, 2)
    assert second["p"] == mcnemar([True, False, True, False], [True, True, True, False])
    assert second["same_text"] == 3  # answer 2 has other tokens
    assert (first["first_difference"], second["first_difference"]) == ({}, {"p/2": 0})
    assert second["mean_acceptance_length"] == 44 / 22
    assert second["mean_acceptance_length_interval"] == ratio_interval([10, 10, 10, 14], [5, 5, 5, 7]) == (2.0, 2.0)
    assert second["draft_acceptance_rate"] == 20 / 80
    assert second["relaxed_per_answer"] == 3 / 4
    assert second["target_passes_per_answer"] == 22 / 4
    assert second["tokens_per_answer"] == 11
    assert (second["cut_at_length"], second["failed"]) == (1, 1)
    assert second["tokens_per_second"] == 44 / 4
    assert second["speed"] == pytest.approx((44 / 4) / (40 / 16))


def test_the_first_other_token_is_found_also_where_one_answer_ends():
    plain = [record("none", 0, i, True, token_ids=[1, 2, 3]) for i in range(4)]
    texts = [[1, 2, 3], [1, 9, 3], [1, 2], [1, 2, 3, 4]]
    others = [record("hf", 0, i, True, token_ids=text) for i, text in enumerate(texts)]
    _, row = summarise([*plain, *others])
    assert row["same_text"] == 1 and row["first_difference"] == {"p/1": 1, "p/2": 2, "p/3": 3}
    assert markdown_table([row]).splitlines()[2].startswith("| hf |  | 4 of 4 |")


def test_cells_are_compared_on_the_answers_that_both_have():
    plain = [record("none", 0, i, True, seconds=8.0) for i in range(2)]
    judged = [record("kl:0.4", 8, i, i < 2, seconds=2.0) for i in range(4)]
    _, row = summarise([*plain, *judged])
    assert row["n"] == 4 and row["same_text"] == 2 and row["p"] == 1.0
    assert row["speed"] == pytest.approx((20 / 2) / (20 / 8))


def test_without_plain_answers_nothing_is_compared():
    (row,) = summarise([record("kl:0.4", 8, 0, True)])
    assert row["p"] is row["same_text"] is row["first_difference"] is row["speed"] is None
    line = markdown_table([row]).splitlines()[2]
    assert line.startswith("| kl:0.4 | 8 | 1 of 1 |") and line.endswith("|  |")


def test_the_table_has_a_line_a_cell(finished):
    rows = summarise(finished[1])
    head, rule, *lines = markdown_table(rows).splitlines()
    assert len(lines) == 3
    assert all(line.count("|") == head.count("|") == rule.count("|") for line in lines)
    assert lines[0].startswith("| plain |  | ") and lines[2].startswith("| kl:4.0 | 4 | ")


def test_records_say_which_schema_they_follow(finished):
    assert json.loads((finished[0] / "plan.json").read_text())["schema"] == sweep.SCHEMA

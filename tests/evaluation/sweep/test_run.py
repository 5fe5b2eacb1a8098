"""Sweeps: what they run, keep and go on with, and the figures made of it."""

import dataclasses
import json

import pytest
from msgspec import structs
from sweep_records import Letters, record
from tiny_pairs import rounded, text_pair

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.sweep import claim as claims
from kljudge_jax.evaluation.sweep import run as sweep
from kljudge_jax.evaluation.sweep.claim import read_records
from kljudge_jax.evaluation.sweep.run import Cell, Plan, grid, parts, pooled, run_sweep
from kljudge_jax.evaluation.sweep.summary import summarise
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.generation.generate import generate

CONFIG = DecodingConfig(24, batch=2)
PLAN = Plan(grid(["none", "exact", "kl:4.0"], [4]), n=10, config=CONFIG)  # turns of 8 and of 2


@pytest.fixture(scope="module")
def pair():
    return text_pair()


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """A folder that holds a whole sweep, what it returned, and what it reported."""
    folder, lines = tmp_path_factory.mktemp("sweep"), []
    return folder, run_sweep(pair, Letters(), PLAN, folder, lines.append), lines


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
    assert len(records) == 10 * 3 == len({(r.rule, r.draft_length, r.problem) for r in records})
    rules = ["none", "exact", "kl:4.0"]
    assert [r.rule for r in records] == [rule for n in (8, 2) for rule in rules for _ in range(n)]  # cells take turns
    assert [r.turn for r in records] == 24 * [0] + 6 * [8]
    assert list(read_records(folder / "answers.jsonl")) == records
    assert len(lines) == 6 and "problems 9-10 of 10, exact @ 4" in lines[4]
    for answer in records:
        letter = "abcdefghij"[int(answer.problem.partition("/")[2])]
        assert answer.right == (letter in answer.text)
        assert len(answer.token_ids) == answer.tokens
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["task"] == "letters" and plan["dtype"] == "float32" and plan["machine"]["backend"] == "cpu"


def test_exact_answers_are_the_plain_ones_and_judged_ones_are_not(finished):
    plain, exact, judged = summarise(finished[1])
    assert exact.same_text == 10 and exact.p == 1.0 and exact.relaxed_per_answer == 0
    assert judged.same_text < 10 and judged.relaxed_per_answer > 0
    assert judged.mean_acceptance_length > exact.mean_acceptance_length > plain.mean_acceptance_length == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.62, 0.999])
def test_a_killed_sweep_answers_what_is_missing(finished, pair, tmp_path, share):
    folder, records, _ = finished
    whole = (folder / "answers.jsonl").read_bytes()
    kept = len(whole[: int(len(whole) * share)].splitlines(True)[:-1])
    (tmp_path / "answers.jsonl").write_bytes(whole[: int(len(whole) * share)])
    (tmp_path / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    again = run_sweep(pair, Letters(), PLAN, tmp_path)

    def told(records):
        found = {(r.rule, r.problem): (r.text, r.right, r.token_ids, r.turn) for r in records}
        assert len(found) == len(records)
        return found

    assert told(again) == told(records) == told(list(read_records(tmp_path / "answers.jsonl")))
    assert again[:kept] == records[:kept]
    assert run_sweep(pair, Letters(), PLAN, tmp_path, lambda line: pytest.fail("all is done")) == list(again)


def test_a_run_that_goes_on_elsewhere_notes_its_machine_once(finished, pair, tmp_path, monkeypatch):
    folder = finished[0]
    lines = (folder / "answers.jsonl").read_bytes().splitlines(True)
    (tmp_path / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:-2]))
    here = claims.describe_machine()
    monkeypatch.setattr(claims, "describe_machine", lambda: structs.replace(here, processor="another"))
    for _ in range(2):  # the second run answers nothing
        run_sweep(pair, Letters(), PLAN, tmp_path)
    claim = json.loads((tmp_path / "plan.json").read_text())
    assert [machine["processor"] for machine in claim["later_machines"]] == ["another"]
    assert json.loads((folder / "plan.json").read_text())["later_machines"] == []


def test_a_kill_in_the_middle_of_a_turn_loses_only_what_was_in_flight(finished, pair, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    checked, check = [], Letters.check

    def fails(task, problem, text):
        checked.append(problem.id)
        if len(checked) == 13:  # the fifth answer of the second cell
            raise Killed
        return check(task, problem, text)

    monkeypatch.setattr(Letters, "check", fails)
    with pytest.raises(Killed):
        run_sweep(pair, Letters(), PLAN, tmp_path)
    assert [r.rule for r in read_records(tmp_path / "answers.jsonl")] == ["none"] * 8 + ["exact"] * 4
    lines = []
    again = run_sweep(pair, Letters(), PLAN, tmp_path, lines.append)
    assert len(checked) == 13 + 30 - 12 and len(lines) == 5
    assert {r.problem for r in again if r.rule == "exact"} == {f"letters/{i}" for i in range(10)}


def test_the_seconds_of_records_add_up_to_those_of_their_turn(finished, pair):
    timed = []

    def noted(*args, **options):
        timed.append(generate(*args, **options))
        return timed[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "generate", noted)
        records = sweep.answer(pair, Letters(), PLAN, PLAN.cells[1], Letters().problems(n=8), range(8))
    (out,) = timed
    assert sum(r.own_seconds for r in records) == pytest.approx(out.stats.seconds)
    assert sum(r.slot_cycles for r in records) == pytest.approx(out.stats.slot_cycles)
    (row,) = summarise(records)
    assert row.tokens_per_second == pytest.approx(out.stats.tokens_per_second)
    assert row.slot_occupancy == pytest.approx(out.stats.slot_occupancy) and 0.5 < row.slot_occupancy <= 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": dataclasses.replace(CONFIG, seed=8)}, "seed"),
        ({"config": dataclasses.replace(CONFIG, max_new_tokens=25)}, "max_new_tokens"),
        ({"config": dataclasses.replace(CONFIG, template_args={"brief": True})}, "template_args"),
        ({"config": dataclasses.replace(CONFIG, section_ids=None, top_k=3)}, "top_k, section_ids"),
        ({"cells": PLAN.cells[:2]}, "cells"),
    ],
)
def test_another_plan_is_refused(finished, pair, change, named):
    with pytest.raises(InputError, match=f"holds another sweep .its plan .{named}. differs.: name a new folder"):
        run_sweep(pair, Letters(), dataclasses.replace(PLAN, **change), finished[0])


def test_another_pair_or_task_is_refused(finished, pair):
    with pytest.raises(InputError, match="draft"):
        run_sweep(dataclasses.replace(pair, draft_name="other"), Letters(), PLAN, finished[0])
    for half in ("target", "draft"):  # the same model in fewer bits is another one
        with pytest.raises(InputError, match="its dtype differs"):
            run_sweep(dataclasses.replace(pair, **{half: rounded(getattr(pair, half))}), Letters(), PLAN, finished[0])
    other = Letters()
    other.name = "words"
    with pytest.raises(InputError, match="task"):
        run_sweep(pair, other, PLAN, finished[0])


class Spelled(Letters):
    """The same task over another file: the same ids, other letters."""

    def problems(self, split="test", n=200, seed=7):
        return [dataclasses.replace(p, prompt=p.prompt.upper()) for p in super().problems(split, n, seed)]


class Turned(Letters):
    """The same prompts with other answers."""

    def problems(self, split="test", n=200, seed=7):
        return [dataclasses.replace(p, answer="z") for p in super().problems(split, n, seed)]


@pytest.mark.parametrize("task", [Spelled(), Turned()])
def test_other_problems_under_the_same_ids_are_refused(finished, pair, task):
    with pytest.raises(InputError, match=r"its problems differ"):
        run_sweep(pair, task, PLAN, finished[0])


@pytest.mark.parametrize("half", ["target", "draft"])
def test_another_model_of_the_same_name_is_refused(finished, pair, half):
    with pytest.raises(InputError, match=r"its weights differ"):
        run_sweep(dataclasses.replace(pair, **{half: getattr(text_pair(11), half)}), Letters(), PLAN, finished[0])


def test_a_folder_that_says_nothing_of_problems_and_weights_is_refused(finished, pair, tmp_path):
    found = json.loads((finished[0] / "plan.json").read_text())
    del found["weights"], found["problems"]
    (tmp_path / "plan.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="begun by a version that did not note"):
        run_sweep(pair, Letters(), PLAN, tmp_path)


def test_a_folder_that_cannot_hold_results_is_refused(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder of results"):
        run_sweep(pair, Letters(), PLAN, tmp_path / "file")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan.json: is no JSON .*: name a new folder"):
        run_sweep(pair, Letters(), PLAN, tmp_path)


def test_a_last_line_that_was_cut_is_dropped_from_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert list(read_records(path)) == []
    records = [record("none", 0, i, True) for i in range(2)]
    whole = "".join(json.dumps(one.to_dict()) + "\n" for one in records).encode()
    path.write_bytes(whole + b'{"rule": "\xc3')
    assert list(read_records(path)) == records
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damaged", [b'{"rule": "no\n', b"\n", b"[1]\n", b'{"rule": "none"}\n', b"\xff\xfe\n", b"7\n"])
def test_a_damaged_line_in_the_middle_is_refused_by_its_number(tmp_path, damaged):
    path = tmp_path / "answers.jsonl"
    one = (json.dumps(record("none", 0, 0, True).to_dict()) + "\n").encode()
    path.write_bytes(one + damaged + one)
    with pytest.raises(InputError, match=r"answers.jsonl, line 2.*: delete that line") as error:
        list(read_records(path))
    assert "\n" not in str(error.value)
    assert path.read_bytes() == one + damaged + one


def test_records_say_which_schema_they_follow(finished):
    assert json.loads((finished[0] / "plan.json").read_text())["schema"] == sweep.SCHEMA


def test_every_answer_says_where_its_tokens_came_from(finished):
    for answer in finished[1]:
        assert len(answer.origin) == len(answer.token_ids)
        assert answer.origin.count("r") == answer.relaxed
        assert set(answer.origin) <= ({"t"} if answer.rule == "none" else set("drt"))
    assert any("r" in answer.origin for answer in finished[1])


def test_several_tasks_and_seeds_have_a_folder_each(tmp_path):
    words = Letters()
    words.name = "words"
    found = parts([Letters(), words], [7, 8, 7], PLAN, tmp_path)
    assert [part.folder.name for part in found] == ["letters-seed7", "letters-seed8", "words-seed7", "words-seed8"]
    assert [part.plan.config.seed for part in found] == [7, 8, 7, 8]
    (alone,) = parts([Letters()], [9], PLAN, tmp_path)
    assert alone.folder == tmp_path and alone.plan.config.seed == 9
    with pytest.raises(InputError, match="share a folder"):
        parts([Letters(), Letters()], [7], PLAN, tmp_path)


def test_a_problem_of_two_seeds_counts_once_when_greedy_and_twice_when_sampled(finished):
    plan, records = PLAN, finished[1]
    other = plan.seeded(8)
    fresh = [structs.replace(record, problem=record.problem + "/other") for record in records]
    assert summarise(pooled([(plan, records), (other, records)]))[0].n == 10
    pool = pooled([(plan, records), (other, fresh)])
    assert summarise(pool)[0].n == 20
    assert len({(record.seed, record.turn) for record in pool}) == 4  # two of each seed, which share their numbers
    hot = dataclasses.replace(plan, config=dataclasses.replace(plan.config, temperature=1.0))
    sampled = [(one, records) for one in (hot, hot.seeded(8))]
    assert summarise(pooled(sampled))[1].n == 20

"""Calibrations: what they run, stop at, keep and go on with, and what they say."""

import dataclasses
import json

import pytest
from tiny_pairs import text_pair

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.calibration import run as module
from kljudge_jax.evaluation.calibration import text as calibration_text
from kljudge_jax.evaluation.calibration.run import PLAIN, Check, Plan, calibrate, check, chosen, summary, write
from kljudge_jax.evaluation.sweep.claim import read_records
from kljudge_jax.evaluation.sweep.run import Cell
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.judges.calibration import Outcome, p_value, upper_bound
from kljudge_jax.tasks import Problem


class Letters:
    """A task: an answer is right if it holds the problem's letter."""

    name = "letters"

    def problems(self, split="test", n=200, seed=7):
        return [Problem(f"letters/{split}/{i}", f"{split[:4]} {seed} {i}", "abcdefgh"[i % 8]) for i in range(n)]

    def check(self, problem, text):
        return problem.answer in text


class Bare(Letters):
    """The same without answers."""

    def problems(self, split="test", n=200, seed=7):
        return [dataclasses.replace(problem, answer="") for problem in super().problems(split, n, seed)]


# Nearly everything is rejected by the strictest, and nothing by the last.
RULES = (
    "kl:-1.0",
    "kl:threshold=-1.0,confidence=0.5",
    "kl:threshold=50.0,confidence=1.0",
    "kl:threshold=60.0,confidence=1.0",
)
PLAN = Plan(
    (PLAIN, *(Cell(rule, 4) for rule in RULES)),
    n=8,
    split="validation",
    config=DecodingConfig(24, batch=2),  # turns of 8
    budget=0.4,
    without_answers=True,
)


@pytest.fixture(scope="module")
def pair():
    return text_pair()


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """A folder that holds a whole calibration, what it returned, and what it reported."""
    folder, lines = tmp_path_factory.mktemp("calibrate"), []
    return folder, calibrate(pair, Bare(), PLAN, folder, lines.append), lines


def made(rule, n, lost, won, budget=0.01):
    outcome = Outcome(n, lost, won)
    p = p_value(outcome, budget)
    right = n - 50 - lost + (won or 0)
    return module.Tested(
        rule=rule,
        outcome=outcome,
        right=right,
        plain_right=n - 50,
        mean_acceptance_length=5.0,
        mean_acceptance_length_interval=(4.9, 5.1),
        failed=0,
        loss=outcome.loss,
        p_value=p,
        upper_bound=upper_bound(outcome),
        promised=p <= 0.05,
    )


def test_strict_thresholds_pass_and_the_first_that_fails_is_the_last_that_is_run(finished):
    folder, found, lines = finished
    assert [one.rule for one in found] == list(RULES[:3])
    assert [one.promised for one in found] == [True, True, False]
    assert chosen(found) == found[1]
    assert found[0].outcome == Outcome(8, 0, None) and found[0].plain_right == found[0].right == 8
    assert found[2].outcome.lost == 8 - found[2].right > 0
    assert {record.rule for record in read_records(folder / "answers.jsonl")} == {"none", *RULES[:3]}
    assert len(lines) == 4  # a turn each
    assert found[2].mean_acceptance_length > found[0].mean_acceptance_length >= 1
    for one in found:
        assert one.p_value == p_value(one.outcome, 0.4) and one.upper_bound == upper_bound(one.outcome)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.999])
def test_a_killed_calibration_goes_on_where_it_was(finished, pair, tmp_path, share):
    folder, found, _ = finished
    whole = (folder / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(whole[: int(len(whole) * share)])
    (tmp_path / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    lines = []
    assert calibrate(pair, Bare(), PLAN, tmp_path, lines.append) == found
    assert len(lines) == 4 - len(whole[: int(len(whole) * share)].splitlines(True)[:-1]) // 8
    calibrate(pair, Bare(), PLAN, tmp_path, lambda line: pytest.fail("all is done"))


@pytest.mark.parametrize("change", [{"budget": 0.5}, {"delta": 0.1}, {"n": 9}, {"cells": PLAN.cells[:3]}])
def test_a_folder_holds_one_plan(finished, pair, change):
    with pytest.raises(InputError, match="name a new folder"):
        calibrate(pair, Bare(), dataclasses.replace(PLAN, **change), finished[0])


def test_a_folder_of_an_earlier_meaning_is_refused_before_an_answer_is_made(finished, pair, tmp_path):
    found = json.loads((finished[0] / "plan.json").read_text())
    assert [cell.pop("meaning") for cell in found["plan"]["cells"]] == [1, 2, 2, 2, 2]
    (tmp_path / "plan.json").write_text(json.dumps(found))  # as 0.1.0 wrote it, killed at once
    with pytest.raises(InputError, match=r"to which kl:-1\.0, kl:th.* meant what kl:-1\.0,first=0, .*: name a new"):
        calibrate(pair, Bare(), PLAN, tmp_path, lambda line: pytest.fail("an answer was made"))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_with_answers_it_counts_what_was_lost_and_won(finished, pair, tmp_path):
    plan = dataclasses.replace(PLAN, cells=(PLAIN, *PLAN.cells[3:]), without_answers=False, budget=0.9)
    found = calibrate(pair, Letters(), plan, tmp_path)
    right = {}
    for record in read_records(tmp_path / "answers.jsonl"):
        right.setdefault(record.rule, {})[record.problem] = record.right
    assert [one.rule for one in found] == list(RULES[2:])
    for one in found:
        pairs = [(right["none"][problem], right[one.rule][problem]) for problem in right["none"]]
        assert one.outcome == Outcome(8, pairs.count((True, False)), pairs.count((False, True)))
        assert one.plain_right == sum(a for a, _ in pairs) and one.right == sum(b for _, b in pairs)


def test_the_choice_is_checked_on_other_problems(finished, pair):
    folder, found, _ = finished
    checked = check(pair, Bare(), PLAN, found[1], 8, "test", folder)
    assert checked.rule == RULES[1] and checked.outcome == Outcome(8, 0, None)
    assert checked.interval == (0.0, pytest.approx(1 - 0.025 ** (1 / 8)))
    problems = {record.problem for record in read_records(folder / "check-test-8" / "answers.jsonl")}
    assert problems == {f"letters/test/{i}" for i in range(8)}
    assert check(pair, Bare(), PLAN, found[1], 6, "test", folder).outcome.n == 6  # in a folder of its own


def test_the_summary_is_json_that_says_what_to_use(finished, tmp_path):
    _, found, _ = finished
    write(tmp_path / "new", summary("pair", PLAN, found, ["calibrate", "--n", "8"], None))
    told = json.loads((tmp_path / "new" / "calibration.json").read_text())
    assert (told["schema"], told["kind"]) == (1, "calibrate")
    assert told["verifier"] == RULES[1] and told["threshold"] == 0.5 and told["check"] is None
    assert [cell["meaning"] for cell in told["plan"]["cells"]] == [1, 2, 2, 2, 2]
    assert told["plan"]["budget"] == 0.4 and told["machine"]["backend"] == "cpu" and told["command"][1] == "--n"
    assert told["tested"][2]["outcome"]["lost"] == found[2].outcome.lost and told["smallest_n"] == 6
    nothing = summary("pair", PLAN, [], [], None)
    assert nothing.threshold is None and nothing.verifier == "exact"


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder of results"):
        write(tmp_path / "file", summary("pair", PLAN, [], [], None))


TEXT_PLAN = Plan((PLAIN, Cell("kl:0.02", 8), Cell("kl:0.1", 8)), n=1000)


def test_the_table_has_a_line_a_threshold():
    found = [made("kl:0.02", 1000, 3, 2), made("kl:0.1", 1000, 20, 8)]
    head, first, second = calibration_text.table(TEXT_PLAN, found).strip().splitlines()
    assert head.split()[:4] == ["rule", "right", "plain", "right"]
    assert first.split()[:6] == ["kl:0.02", "949", "of", "1000", "950", "3"] and " yes " in first
    assert " no " in second and f"{100 * found[1].upper_bound:.2f} points" in second
    agreeing = dataclasses.replace(TEXT_PLAN, without_answers=True)
    assert "won" not in calibration_text.table(agreeing, [made("kl:0.02", 1000, 3, None)])


def test_the_verdict_names_the_rule_to_use_and_what_the_next_would_take():
    text = calibration_text.verdict(TEXT_PLAN, [made("kl:0.02", 1000, 3, 2), made("kl:0.1", 1000, 12, 8)])
    assert "Promised: kl:0.02 loses at most 1 points" in text and "--verifier kl:0.02 --draft-length 8" in text
    assert "kl:0.1 is not promised: 1000 prompts leave too much doubt" in text and "another --seed" in text


def test_the_verdict_of_a_rule_that_loses_too_much_is_exact_decoding():
    text = calibration_text.verdict(TEXT_PLAN, [made("kl:0.02", 1000, 30, 2)])
    assert "Nothing is promised: use exact decoding" in text and "--verifier exact" in text
    assert "it lost 2.80 points" in text
    assert "Every threshold passed" in calibration_text.verdict(TEXT_PLAN, [made("kl:0.02", 1000, 0, 2)])
    assert "301" in calibration_text.too_few(dataclasses.replace(TEXT_PLAN, n=300))


def test_a_check_is_told_with_its_interval():
    outcome = Outcome(1000, 3, 5)
    text = calibration_text.told(
        Check(
            rule="kl:0.02",
            outcome=outcome,
            right=952,
            plain_right=950,
            mean_acceptance_length=5.0,
            mean_acceptance_length_interval=(4.9, 5.1),
            failed=0,
            loss=outcome.loss,
            split="test",
            interval=(-0.008, 0.004),
        )
    )
    assert "gains 0.20 points (-0.40 to 0.80, 95 %; 3 lost, 5 won; 952 right, plain 950)" in text


def test_the_public_call_is_the_same(pair):
    config = dataclasses.replace(PLAN.config, draft_length=4)
    asked = {"budget": 40, "without_answers": True, "n": 8, "config": config}
    found = kj.calibrate(pair, Bare(), "kl:confidence=1.0", [-1.0, 50.0, 60.0], **asked, seed=3)
    assert (found.plan.budget, found.plan.config) == (0.4, dataclasses.replace(config, seed=3))
    assert found.tested[0].rule == "kl:confidence=1.0,threshold=-1.0" and not found.failed
    assert str(found).startswith(calibration_text.table(found.plan, found.tested)) and found.verifier in str(found)
    few = kj.calibrate(pair, Bare(), thresholds=[0.1], n=8)
    assert few.verifier == "exact" and not few.tested and "8 prompts are too few" in str(few)


@pytest.mark.parametrize(
    "wrong",
    [{"budget": 0}, {"delta": 1}, {"n": 0}, {"check_n": 3, "split": "all"}, {"batch": 0}, {"rule": "exact"}],
)
def test_the_public_call_refuses_what_cannot_be(pair, wrong):
    with pytest.raises(InputError):
        kj.calibrate(pair, Bare(), **wrong)

"""The demonstration on a tiny pair: what it counts and what it prints."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_pairs import text_pair

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation import demo
from kljudge_jax.evaluation.demo import Demo, Way, _speed_ratio
from kljudge_jax.evaluation.demo_record import DemoSummary, SpeedRatio
from kljudge_jax.records import read
from kljudge_jax.tasks.base import Problem
from kljudge_jax.text_table import aligned, markdown


class Letters:
    """A task whose answers hold a letter."""

    name = "letters"

    def problems(self, split="test", n=200, seed=7):
        return [Problem(f"letters/{i}", text, "a") for i, text in enumerate(["ab", "cd", "ef", "gh"][:n])]

    def check(self, problem, text):
        return "a" in text


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "MAX_NEW_TOKENS", 24)
        yield


@pytest.fixture(scope="module")
def shown():
    return Demo(text_pair(), Letters(), ("none", "exact", "all"), 4, Letters().problems(n=4))


def test_the_shown_answer_is_what_generate_gives(shown):
    events = list(shown.stream("exact"))
    expected = kj.generate(shown.pair, "ab", verifier="exact", draft_length=4, max_new_tokens=24)
    assert "".join(event.text for event in events) == expected.text[0]
    answer = shown.explain("exact", events[-1].result)
    assert "".join(answer.pieces) == expected.text[0]
    assert answer.note == f"{expected.stats.tokens} tokens in {expected.stats.cycles} target passes"


def test_the_table_compares_all_rules_on_all_problems(shown):
    rows = shown.compare([SpeedRatio(tokens_per_second=100.0, ratio=1.0, interval=(0.9, 1.1))] * 3)
    assert [(row.rule, row.draft) for row in rows] == [("none", None), ("exact", "model"), ("all", "model")]
    assert all(row.n == 4 for row in rows)
    assert rows[0].mean_acceptance_length == 1.0 < rows[1].mean_acceptance_length
    assert rows[1].same_text == 4
    cells = demo.table(rows)
    assert len({len(row) for row in cells}) == 1 and len(cells) == 4
    assert markdown(cells).count("\n") == 5
    assert len({len(line) for line in aligned(cells).splitlines()}) == 1


def test_single_answers_are_timed_under_every_rule(shown):
    speeds = shown.time_one_by_one(count=2, rounds=1)
    assert len(speeds) == 3 and speeds[0].ratio == 1.0 == pytest.approx(speeds[0].interval[0])
    assert all(speed.tokens_per_second > 0 for speed in speeds)


def test_a_head_has_rows_of_its_own_beside_the_model(shown):
    """Its rows are those of its pair at its length; rules that read the draft's states have none."""
    headed = dataclasses.replace(
        shown, rules=("none", "exact", "judge:embedded,threshold=0.2"), head=shown.pair, head_length=2
    )
    judge = headed.rules[2]
    assert headed.ways == [
        Way("none", None, 4),
        Way("exact", "model", 4),
        Way(judge, "model", 4),
        Way("exact", "head", 2),
    ]
    headed = dataclasses.replace(headed, rules=("none", "exact"))
    rows = headed.compare([SpeedRatio(tokens_per_second=100.0, ratio=1.0, interval=(0.9, 1.1))] * 3)
    assert [(row.rule, row.draft, row.draft_length) for row in rows[1:]] == [
        ("exact", "model", 4),
        ("exact", "head", 2),
    ]
    assert rows[2].same_text == 4 and rows[1].target_passes_per_answer < rows[2].target_passes_per_answer


def test_a_rule_that_is_twice_as_fast_everywhere_has_a_sharp_ratio():
    tokens = np.array([[10.0, 30.0], [10.0, 30.0]])
    seconds = np.array([[1.0, 4.0], [0.5, 2.0]])
    speed = _speed_ratio(tokens, seconds, 1)
    assert (speed.tokens_per_second, speed.ratio) == (16.0, 2.0) and speed.interval == pytest.approx((2.0, 2.0))


def test_the_command_shows_all_and_leaves_its_files(capsys, tmp_path, monkeypatch):
    pair, asked = text_pair(), []
    monkeypatch.setattr(kj.ModelPair, "embedded", lambda **words: asked.append(words) or pair)
    monkeypatch.setattr("kljudge_jax.tasks.load_task", lambda name: Letters())
    words = ["demo", "--problems", "4", "--rules", "exact,all", "--draft-length", "4", "--color", "always"]
    assert main([*words, "--mesh", "data=2", "--out", str(tmp_path / "out")]) == 0
    placed = {"mesh": "data=2", "axes": None, "draft_axes": None}
    assert asked == [placed, {"draft": "embedded:head", **placed}]
    assert "--mesh data=2" in (tmp_path / "out" / "answer.html").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "plain decoding" in out and "exact speculative" in out and "4 fresh problems" in out
    assert "\x1b[32m" in out and "\x1b[36m" in out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "answer.html",
        "answer.png",
        "summary.json",
        "table.md",
    }
    path = tmp_path / "out" / "summary.json"
    summary = read(path, DemoSummary, exact=True)
    assert [cell.rule for cell in summary.cells] == ["none", "exact", "all", "exact", "all"]
    assert [cell.draft for cell in summary.cells] == [None, "model", "model", "head", "head"]
    assert summary.machine.versions["jax"] and summary.schema == 2
    for damage, said in [
        (lambda kept: kept["cells"][3].update(draft="none"), r"summary\.json, field cells\[3\]\.draft: "),
        (lambda kept: kept["cells"][1]["one_by_one"].pop("ratio"), r"field cells\[1\]\.one_by_one: .*ratio"),
        (lambda kept: kept.update(schema=1), "is of schema 1, and this version reads 2"),
    ]:
        kept = json.loads(path.read_text())
        damage(kept)
        (tmp_path / "summary.json").write_text(json.dumps(kept))
        with pytest.raises(InputError, match=said):
            read(tmp_path / "summary.json", DemoSummary)


def test_what_was_shown_is_kept_when_the_demo_is_stopped(capsys, tmp_path, monkeypatch):
    def stop(self, **_):
        raise KeyboardInterrupt

    pair = text_pair()
    monkeypatch.setattr(kj.ModelPair, "embedded", lambda **_: pair)
    monkeypatch.setattr("kljudge_jax.tasks.load_task", lambda name: Letters())
    monkeypatch.setattr(Demo, "time_one_by_one", stop)
    words = ["demo", "--problems", "4", "--rules", "exact", "--draft-length", "4", "--out", str(tmp_path)]
    assert main(words) == 130
    assert f"stopped; the answers that were shown are in {tmp_path}" in capsys.readouterr().err
    page = (tmp_path / "answer.html").read_text(encoding="utf-8")
    assert "exact speculative decoding" in page and "<table>" not in page
    assert (tmp_path / "answer.png").stat().st_size > 0


@pytest.mark.parametrize("words", [["--problems", "0"], ["--rules", "magic"], ["--draft-length", "0"]])
def test_the_command_refuses_nonsense(capsys, words):
    assert main(["demo", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

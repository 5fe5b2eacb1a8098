"""`kljudge train-pair`: options reach the recipes, progress is told, a second call goes on."""

import json
import re

import pytest

from kljudge_jax.cli import main
from kljudge_jax.training import train_pair as training
from kljudge_jax.training.card import Card
from kljudge_jax.training.trainer import Progress


@pytest.fixture
def called(monkeypatch):
    """What `train_pair` is called with, and a card of no use."""
    calls = []

    def stand_in(folder, target, draft, report, problems):
        calls.append({"folder": folder, "target": target, "draft": draft, "problems": problems})
        report("target", Progress(50, 100, 1.25, 80.0, {}))
        report("target", Progress(100, 100, 0.5, 80.0, {"arithmetic": 0.5}))
        machine = {"device": "cpu"}
        return Card({}, {}, {"target": {"arithmetic": 0.5}}, problems, {}, {}, machine)

    monkeypatch.setattr(training, "train_pair", stand_in)
    return calls


def test_without_options_it_makes_the_shipped_pair(called, capsys):
    assert main(["train-pair", "somewhere"]) == 0
    assert called == [{"folder": "somewhere", "target": training.TARGET, "draft": training.DRAFT, "problems": 1000}]
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[0]) == {"target": {"arithmetic": 0.5}}
    assert out.err == ""  # no terminal, no progress


def test_options_change_the_recipes(called):
    words = ["--target-steps", "7", "--draft-steps", "9", "--batch", "16", "--seed", "5", "--problems", "3"]
    assert main(["train-pair", "somewhere", *words]) == 0
    (call,) = called
    assert (call["target"].steps, call["draft"].steps, call["problems"]) == (7, 9, 3)
    assert (call["target"].seed, call["draft"].seed) == (5, 6)
    assert call["target"].turns[-1] == (7, 0.0), "the rate still falls to 0 at the end"
    assert (
        call["target"].curriculum[-1][0] < 7 and call["target"].curriculum[-1][1] == training.TARGET.curriculum[-1][1]
    )
    assert call["target"].batch_size == call["draft"].batch_size == 16


@pytest.mark.parametrize("words", [["--batch", "0"], ["--target-steps", "-1"], ["--seed", "-1"], ["--problems", "0"]])
def test_nonsense_is_refused_in_one_line(called, capsys, words):
    assert main(["train-pair", "somewhere", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not called


def test_a_terminal_sees_how_far_it_has_come_and_keeps_what_was_measured(called, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for name, value in {"COLUMNS": "200", "LINES": "20", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train-pair", "somewhere"]) == 0
    err = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search("50%.*target: step 50 of 100", err) and re.search("100%.*target: step 100 of 100", err)
    (kept,) = [line for line in re.split("[\r\n]+", err) if line.startswith("target")]
    assert kept.startswith("target: step 100 of 100") and "arithmetic 50.0%" in kept


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_pair", stop)
    assert main(["train-pair", "somewhere"]) == 130
    said = "kljudge train-pair: stopped; the last checkpoint is in somewhere: repeat the command to go on"
    assert capsys.readouterr().err.strip() == said

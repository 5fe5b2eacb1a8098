"""`kljudge train-pair`: options reach the recipes, progress is told, a second call goes on."""

import json

import pytest

from kljudge_jax.cli import main
from kljudge_jax.commands.train_pair import _Bar
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
    assert "step 50 of 100" in out.err and "arithmetic 50.0%" in out.err


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


def test_a_terminal_sees_one_moving_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = _Bar()
    bar.show("draft", Progress(50, 200, 1.25, 80.0, {}))
    bar.show("draft", Progress(100, 200, 1.0, 80.0, {}))
    bar.show("draft", Progress(200, 200, 0.5, 80.0, {"arithmetic": 0.5}))
    err = capsys.readouterr().err
    assert err.count("\r") == 3 and err.count("\n") == 1
    assert "min left" in err.split("\r")[2] and "[========================]" in err

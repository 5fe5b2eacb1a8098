"""The moving line: on a terminal how far and how long, for programs nothing."""

import time
import types

import pytest

from kljudge_jax.commands import progress
from kljudge_jax.commands.progress import Bar, duration
from kljudge_jax.evaluation.step import Step


def on_a_terminal(monkeypatch):
    """A terminal of 60 columns, and a clock that tells 0, 10, 20, ... seconds."""
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setenv("COLUMNS", "60")


def test_programs_are_told_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with Bar() as bar:
        bar.show(Step("batch 1", 1, 2))
        bar.keep("loss 0.5")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_how_far_and_how_long(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(Step("batch 1", 1, 4))
    line = capsys.readouterr().err.split("\x1b[K")[1]
    assert line.startswith("[======                  ] 25 %, 30 s left: batch 1")


def test_the_work_of_an_earlier_run_says_nothing_of_the_speed(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(Step("x", 6, 10, before=5))
    assert "60 %, 40 s left" in capsys.readouterr().err


def test_nothing_is_left_at_the_end_and_nothing_known_at_the_beginning(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(Step("begun", 0, 4))
        bar.show(Step("done", 4, 4))
    assert "left" not in capsys.readouterr().err


def test_a_line_never_breaks(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(Step("y" * 200, 1, 2))
    assert all(len(part) < 60 for part in capsys.readouterr().err.split("\r\x1b[K"))


def test_a_line_that_stays_counts_the_seconds(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar("compiling") as bar:
        for _ in range(100):
            time.sleep(0.05)
            if "compiling ... " in (said := capsys.readouterr().err):
                break
        bar.stop()
        bar.stop()
        print("the answer")
    assert "\r\x1b[Kcompiling ... 10 s" in said
    assert capsys.readouterr() == ("the answer\n", "\r\x1b[K")  # taken away once


def test_what_is_kept_stays_and_the_rest_goes(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.keep("loss 0.5")
        bar.show("loss 0.4")
    assert capsys.readouterr().err == "\r\x1b[Kloss 0.5\n\r\x1b[Kloss 0.4\r\x1b[K"


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "3 s"), (89, "89 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def test_a_step_is_its_line():
    assert Step("a line", 1, 2) == "a line"

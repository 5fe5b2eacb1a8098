"""The moving line: on a terminal how far and how long, for programs nothing."""

import re
import time
import types

import pytest

from kljudge_jax.commands import progress
from kljudge_jax.commands.progress import Bar, duration
from kljudge_jax.progress_update import ProgressUpdate


def on_a_terminal(monkeypatch):
    """A terminal of 60 columns, and a clock that tells 0, 10, 20, ... seconds."""
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    for name, value in {"COLUMNS": "60", "LINES": "20", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


def drawn(capsys):
    """The lines that a terminal was given since the last call, without colours and what moves the cursor."""
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n").split("\n")


def test_programs_are_told_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with Bar() as bar:
        bar.show(ProgressUpdate("batch 1", 1, 2))
        bar.keep("loss 0.5")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_how_far_and_how_long(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(ProgressUpdate("batch 1", 1, 4))
    assert any("25%" in line and line.rstrip().endswith("30 s left: batch 1") for line in drawn(capsys))


def test_the_work_of_an_earlier_run_says_nothing_of_the_speed(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(ProgressUpdate("x", 6, 10, before=5))
    assert any("60%" in line and "40 s left: x" in line for line in drawn(capsys))


def test_nothing_is_left_at_the_end_and_nothing_known_at_the_beginning(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(ProgressUpdate("begun", 0, 4))
        bar.show(ProgressUpdate("done", 4, 4))
    said = "".join(drawn(capsys))
    assert "left" not in said and "done" in said


def test_a_line_never_breaks(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.show(ProgressUpdate("y" * 200, 1, 2))
    lines = drawn(capsys)
    assert any("yyyy" in line for line in lines) and all(len(line) <= 60 for line in lines)


def test_what_waits_is_said_with_a_clock(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar("compiling") as bar:
        time.sleep(1.3)
        bar.stop()
        bar.stop()
        print("the answer")
    said = capsys.readouterr()
    assert said.out == "the answer\n"  # not drawn with the line
    assert "compiling" in said.err and "0:00:01" in said.err
    assert said.err.rstrip().endswith("\x1b[2K")  # taken away


def test_what_is_kept_stays_and_the_rest_goes(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with Bar() as bar:
        bar.keep("loss [0.5]")
        bar.show("loss 0.4")
    lines = [line for line in drawn(capsys) if line.startswith("loss")]
    assert lines == ["loss [0.5]"]  # on a line of its own, brackets and all


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "3 s"), (89, "89 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def test_a_step_is_its_line():
    assert ProgressUpdate("a line", 1, 2) == "a line"

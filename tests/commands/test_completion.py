"""The scripts that shells are given, run by the shell where it is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kljudge_jax
from kljudge_jax import describe_rules
from kljudge_jax.cli import main
from kljudge_jax.commands.command import RULE_NAMES


@pytest.fixture
def script(capsys):
    def made(shell):
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return made


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sw"], ["sweep"]),
        (["sweep", "--draft-l"], ["--draft-lengths"]),
        (["generate", "--dtype", "b"], ["bfloat16"]),
        (["completion", "z"], ["zsh"]),
        (["sweep", "--target", "./mod"], []),  # there is no such file
        (["sweep", "--target", ""], ["embedded", "big.gguf"]),
        (["generate", "--verifier", "t"], ["thinking", "thinking_ratio", "topk", "typical"]),
        (["sweep", "--rules", "ex"], ["exact"]),
        (["sweep", "--out", ""], []),  # files are the shell's own
        (["sweep", "--n", ""], []),
    ],
)
def test_bash_completes(script, typed, offered, tmp_path):
    here, program = tmp_path / "here", tmp_path / "kljudge"
    here.mkdir()
    (here / "big.gguf").touch()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m kljudge_jax.cli\n")
    program.chmod(0o755)
    words = " ".join(f"'{word}'" for word in ["kljudge", *typed])
    # `compopt`, which hands a word over to the shell's own completion of files, does so for keys that are pressed.
    call = f"compopt() {{ :; }}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _kljudge_completion {program}"
    asked = f"{script('bash')}\n{call}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    env = os.environ | {"PYTHONPATH": str(Path(kljudge_jax.__file__).parents[1])}
    out = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True, timeout=60, cwd=here, env=env
    )
    assert out.stderr == "" and out.stdout.split() == offered


def test_every_rule_is_offered():
    assert sorted(RULE_NAMES) == sorted({"none", *(row["spec"] for row in describe_rules())})


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_parse_their_script(script, shell, tmp_path):
    text = script(shell)
    assert "_KLJUDGE_COMPLETE" in text
    if shutil.which(shell) is None:
        return
    (tmp_path / "script").write_text(text)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=60)


def test_another_shell_is_refused_in_one_line(capsys):
    assert main(["completion", "tcsh"]) == 2 and len(capsys.readouterr().err.splitlines()) == 1

"""The scripts that shells are given, run by the shell where it is installed."""

import shutil
import subprocess

import pytest

from kljudge_jax import describe_rules
from kljudge_jax.cli import main
from kljudge_jax.commands.completion import RULE_WORDS


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
        (["generate", "--verifier", "t"], ["thinking", "topk", "typical"]),
        (["sweep", "--rules", "ex"], ["exact"]),
        (["sweep", "--out", ""], []),  # files are the shell's own
        (["sweep", "--n", ""], []),
    ],
)
def test_bash_completes(script, typed, offered, tmp_path):
    (tmp_path / "big.gguf").touch()
    words = " ".join(f"'{word}'" for word in ["kljudge", *typed])
    call = f'COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _kljudge; printf "%s\\n" "${{COMPREPLY[@]}}"'
    asked = f"{script('bash')}\n{call}"
    out = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
    )
    assert out.stderr == "" and out.stdout.split() == offered


def test_every_rule_is_offered():
    assert sorted(RULE_WORDS) == sorted({"none", *(row["word"] for row in describe_rules())})


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_parse_their_script(script, shell, tmp_path):
    text = script(shell)
    assert "train-judge" in text and "draft-length" in text
    if shutil.which(shell) is None:
        return
    (tmp_path / "script").write_text(text)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=60)


def test_another_shell_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["completion", "tcsh"])
    assert exit.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1

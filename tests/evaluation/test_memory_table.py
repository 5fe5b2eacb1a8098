"""The table of the documentation is what the code works out."""

from pathlib import Path

import pytest

from kljudge_jax.cli import main
from kljudge_jax.evaluation.memory_table import memory_table
from kljudge_jax.generation.memory_plan import Workload


def test_the_documentation_has_the_table_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "pages" / "memory.md").read_text(encoding="utf-8")
    assert memory_table(Workload()) in text


def test_a_plan_says_whether_it_fits(capsys):
    words = ["plan", "--target", "llama-3.2-1b:layers=2", "--batch", "4", "--dtype", "float32"]
    assert main([*words, "--memory", "100"]) == 0
    assert "a batch of 4 fits" in capsys.readouterr().out
    assert main([*words, "--memory", "0.5"]) == 1
    assert "no batch fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0", "--target", "llama-3.2-1b"], "start at 1"),
        ([], "name a --target"),
        (["--target", "llama-3.2-1b", "--device", "abacus"], "v5e, v5p"),
        (["--target", "llama-3.2-1b", "--device", "v5e", "--memory", "3"], "in place of --device"),
        (["--target", "llama-9"], "no shape of"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(words, message, capsys):
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_head_is_planned_for_by_its_shape(capsys):
    words = ["plan", "--target", "llama-3.1-8b", "--draft", "eagle3:vocab=32000", "--device", "h100"]
    assert main(words) == 0
    # Joined states 50M, a layer 243M that reads twice the hidden size, 32,000 rows 131M, in bfloat16.
    assert "draft weights        0.8 GB" in capsys.readouterr().out
    assert main([*words, "--draft-bits", "4"]) == 0
    assert "draft weights        0.3 GB" in capsys.readouterr().out
    assert main([*words, "--prompt-tokens", "200000"]) == 2
    assert "the models take 131072" in capsys.readouterr().err


def test_fewer_bits_are_planned_for(capsys):
    words = ["plan", "--target", "llama-3.1-405b", "--mesh", "tensor=8", "--device", "h100"]
    assert main(words) == 1
    assert "no batch fits" in capsys.readouterr().out
    assert main([*words, "--bits", "8"]) == 0
    assert "target weights      50.8 GB" in capsys.readouterr().out


def test_more_tokens_than_the_models_take_are_refused(capsys):
    words = ["plan", "--target", "llama-3.2-1b", "--draft", "llama-3.2-1b:layers=2"]
    assert main([*words, "--prompt-tokens", "200000"]) == 2
    assert "make 200256, and the models take" in capsys.readouterr().err


def test_a_drafter_that_reads_no_draft_is_planned_without_one(capsys):
    words = ["plan", "--target", "llama-3.2-1b:layers=2", "--draft", "llama-3.2-1b:layers=1"]
    assert main([*words, "--drafter", "lookup:3"]) == 0
    assert "draft weights        0.0 MB" in capsys.readouterr().out
    assert main(words) == 0
    assert "draft weights        0.6 GB" in capsys.readouterr().out


def test_a_cut_head_is_worked_out_with_its_rows(capsys, tmp_path):
    words = ["plan", "--target", "llama-3.2-1b:layers=2", "--draft", "llama-3.1-8b:layers=1"]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(8192))))
    assert main([*words, "--draft-vocab", "8192"]) == 0
    counted = capsys.readouterr().out
    assert main([*words, "--draft-vocab", str(tmp_path / "ids.txt")]) == 0
    assert capsys.readouterr().out == counted
    assert main(words) == 0
    whole = capsys.readouterr().out
    # An own head: 120,064 of its 128,256 rows of 4,096 in bfloat16 are gone, 0.98 GB.
    held = [float(text.split("draft weights")[1].split("GB")[0]) for text in (whole, counted)]
    assert abs(held[0] - held[1] - 2 * 4096 * (128256 - 8192) / 1e9) < 0.1
    assert main(["plan", "--target", "llama-3.2-1b", "--draft-vocab", "8"]) == 2
    assert "draft_vocab is of a draft, and there is none" in capsys.readouterr().err

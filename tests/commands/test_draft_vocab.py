"""`--draft-vocab`, and `kl` with prompt lookup, on the command line."""

import json

import pytest

from kljudge_jax.cli import main


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("# the first half\n" + "\n".join(map(str, range(320))))
    return path


@pytest.mark.slow
def test_a_bench_names_the_tokens_that_the_draft_knows(tmp_path, ids, capsys):
    words = ["bench", "--target", "embedded", "--rules", "exact", "--prompts", "1", "--rounds", "1"]
    words += ["--max-new-tokens", "16", "--out", str(tmp_path / "out"), "--draft-vocab", str(ids)]
    assert main(words) == 0, capsys.readouterr().err
    assert "320 of 640 tokens" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert figures["dtype"] == "float32, draft float32, 320 of 640 tokens"
    draft = figures["models"]["draft"]
    assert draft["shape"]["head_rows"] == 320 and "head_rows" not in figures["models"]["target"]["shape"]
    # The parameters are float32; the ids take 4 bytes each.
    assert draft["bytes"] == 4 * (draft["parameters"] + 320)


def test_generating_with_a_cut_draft(ids, capsys):
    words = ["generate", "--target", "embedded", "--verifier", "kl:0.4", "--max-new-tokens", "8", "--raw", "--json"]
    assert main([*words, "--draft-vocab", str(ids), "Tom has 3 red pens."]) == 0
    assert json.loads(capsys.readouterr().out)["text"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--draft-vocab", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--drafter", "lookup:3"], "KLJudge reads KL(target || draft), and PromptLookup has no distribution"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(words, says, capsys):
    assert main(["generate", "--target", "embedded", "--verifier", "kl:0.4", *words, "Tom has 3 red pens."]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kljudge generate: ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["sweep", "bench"])
def test_kl_with_prompt_lookup_is_refused_before_a_model_is_read(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("kljudge_jax.ModelPair.from_pretrained", None)
    words = [command, "--target", "nowhere", "--drafter", "lookup", "--rules", "none,exact,kl:0.4"]
    words += ["--task", "arithmetic"] if command == "sweep" else []
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "KLJudge reads KL(target || draft)" in capsys.readouterr().err

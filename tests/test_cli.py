"""The command line, on tiny models in folders."""

import json

import numpy as np
import pytest

from kljudge_jax.cli import main


def run(capsys, *words):
    """Exit status, stdout and stderr of one call."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as exit:
        status = exit.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture(scope="module")
def folders(tiny_folders):
    return ["--target", tiny_folders.target, "--draft", tiny_folders.draft, "--max-new-tokens", "12"]


def test_generate_prints_the_answer_and_its_cost(capsys, folders):
    status, out, err = run(capsys, "generate", *folders, "--verifier", "exact", "hello there")
    assert status == 0
    assert out.strip()
    assert "target passes" in err and "draft tokens kept" in err
    assert "\x1b" not in out


def test_json_and_text_say_the_same(capsys, folders):
    _, text, _ = run(capsys, "generate", *folders, "hello there")
    status, out, _ = run(capsys, "generate", *folders, "--json", "hello there")
    answer = json.loads(out)
    assert status == 0
    assert answer["text"].strip() == text.strip()
    assert len(answer["tokens"]) == len(answer["origin"]) == answer["stats"]["tokens"] <= 12
    assert answer["stats"]["mean_acceptance_length"] == answer["stats"]["tokens"] / answer["stats"]["cycles"]


def test_colours_mark_the_origin(capsys, folders):
    _, plain, _ = run(capsys, "generate", *folders, "--verifier", "none", "hello there")
    status, out, _ = run(capsys, "generate", *folders, "--verifier", "none", "--color", "always", "hello there")
    assert status == 0
    assert out.replace("\x1b[36m", "").replace("\x1b[0m", "") == plain
    assert "\x1b[36m" in out and "\x1b[32m" not in out  # plain decoding has no draft


def test_the_prompt_may_come_from_a_file_or_from_standard_input(capsys, folders, tmp_path, monkeypatch):
    import io

    (tmp_path / "prompt.txt").write_text("hello there\n")
    _, argument, _ = run(capsys, "generate", *folders, "hello there")
    _, file, _ = run(capsys, "generate", *folders, "--file", tmp_path / "prompt.txt")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello there\n"))
    _, stdin, _ = run(capsys, "generate", *folders)
    assert argument == file == stdin


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "./nowhere"], "no such folder"),
        (["--verifier", "kl:often"], "often"),
        (["--verifier", "kl:nan"], "nan"),
        (["--verifier", "magic"], "magic"),
        (["--draft-length", "0"], "--draft-length"),
        (["--draft-length", "x"], "invalid int"),
        (["--temperature", "-1"], "temperature"),
        (["--mesh", "data=99"], "needs 99 devices"),
        (["--mesh", "depth=2"], "mesh"),
        (["--max-new-tokens", "100000"], "takes"),
        (["--file", "./no-such-prompt.txt"], "not both"),
        (["--system", "be brief", "--raw"], "--system"),
        (["--stop", ""], "stop"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, folders, words, message):
    status, out, err = run(capsys, "generate", *folders, *words, "hello there")
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(capsys, folders, prompt):
    status, _, err = run(capsys, "generate", *folders, prompt)
    assert status == 2
    assert "empty" in err and len(err.strip().splitlines()) == 1


def test_a_model_that_returns_nan_exits_1_after_the_rest(capsys, tiny_folders):
    words = ["--target", tiny_folders.broken, "--draft", tiny_folders.draft, "--max-new-tokens", "4"]
    status, out, err = run(capsys, "generate", *words, "--json", "hello")
    assert status == 1
    assert json.loads(out)["finish"] == "failed"
    assert "NaN" in err


def test_rules_lists_every_rule(capsys):
    status, out, _ = run(capsys, "rules")
    assert status == 0
    assert "kl:threshold=..." in out and "lossless" in out and "2601.04766" in out
    status, out, _ = run(capsys, "rules", "--json")
    assert {"kl", "exact", "all", "random"} <= {row["word"] for row in json.loads(out)}


def test_convert_writes_a_folder_that_answers_alike(capsys, folders, tiny_folders, tmp_path):
    _, before, _ = run(capsys, "generate", *folders, "hello there")
    status, _, _ = run(capsys, "convert", tiny_folders.target, tmp_path / "converted")
    assert status == 0
    folders = ["--target", tmp_path / "converted", *folders[2:]]
    _, after, _ = run(capsys, "generate", *folders, "hello there")
    assert after == before


def test_sweep_writes_answers_and_a_table_and_goes_on(capsys, folders, tmp_path):
    lines = [json.dumps({"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"}) for i in range(5)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    words = ["sweep", *folders, "--task", f"gsm8k:{tmp_path / 'problems.jsonl'}", "--rules", "none,exact,kl:2.0"]
    words += ["--n", "5", "--batch", "3", "--draft-lengths", "2,4", "--out", tmp_path / "out"]
    status, out, _ = run(capsys, *words)
    assert status == 0
    answers = (tmp_path / "out" / "answers.jsonl").read_text()
    assert len(answers.splitlines()) == 5 * 5
    assert out.count("\n") == 2 + 5
    exact = [line for line in out.splitlines() if line.startswith("| exact")]
    assert all(line.split("|")[6].strip() == "5" for line in exact)  # the same text as plain decoding

    # A kill in the middle of a line loses that batch and no other.
    (tmp_path / "out" / "answers.jsonl").write_text(answers[: len(answers) * 2 // 3])
    status, again, _ = run(capsys, *words)
    assert status == 0

    def texts(lines):
        records = [json.loads(line) for line in lines.splitlines()]
        return sorted((r["rule"], r["draft_length"], r["problem"], r["text"]) for r in records)

    assert texts((tmp_path / "out" / "answers.jsonl").read_text()) == texts(answers)
    status, _, err = run(capsys, *words, "--seed", "8")
    assert status == 2 and "another sweep" in err
    assert np.isfinite(json.loads((tmp_path / "out" / "summary.json").read_text())["cells"][1]["speed"])

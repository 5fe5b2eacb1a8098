"""The command line, on tiny models in folders.

Sweeps ask one short prompt at a time and show no answer, in the sizes of `generate`: so they share its programs.
"""

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import types

import click
import jax
import pytest
from command_lines import commands
from tiny_pairs import DRAFT_LENGTH

from kljudge_jax.cli import main
from kljudge_jax.commands import generate, rules
from kljudge_jax.commands.command import plain_warnings


def run(capsys, *words):
    """Exit status, stdout and stderr of one call."""
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture(scope="module")
def folders(tiny_folders):
    return ["--target", tiny_folders.target, "--draft", tiny_folders.draft, "--max-new-tokens", "24"]


@pytest.fixture(scope="module")
def answering(folders):
    """A call that answers, less its prompt."""
    return ["generate", *folders, "--draft-length", DRAFT_LENGTH]


def test_generate_prints_the_answer_and_its_cost(capsys, answering):
    status, out, err = run(capsys, *answering, "--verifier", "exact", "hello there")
    assert status == 0
    assert out.strip()
    assert "target passes" in err and "draft tokens kept" in err
    assert "\x1b" not in out


def test_what_a_run_says_of_its_pace_ends_the_summary():
    stats = types.SimpleNamespace(
        tokens=8, seconds=1.0, tokens_per_second=8.0, compile_seconds=0.0, cycles=8, drafted=0
    )
    result = types.SimpleNamespace(stats=stats, pace="speculation does not pay here")
    said = generate._summary(types.SimpleNamespace(verifier="exact"), result)
    assert said == "exact: 8 tokens in 1.0 s, 8.0 tokens/s; 8 target passes\nspeculation does not pay here"


@pytest.mark.slow
def test_generate_says_that_an_adaptive_length_never_drafted(capsys, answering):
    never = ("--draft-length", "adaptive:maximum=2,cost=5.0", "--max-new-tokens", "8")
    status, _, err = run(capsys, *answering, *never, "--verifier", "exact", "hello there")
    assert status == 0
    assert "speculation does not pay here, and stopped in 100% of the cycles" in err
    assert "draft tokens kept" not in err and "were kept" not in err


def test_json_and_text_say_the_same(capsys, answering):
    _, text, _ = run(capsys, *answering, "hello there")
    status, out, _ = run(capsys, *answering, "--json", "hello there")
    answer = json.loads(out)
    assert status == 0
    assert answer["text"].strip() == text.strip()
    assert len(answer["tokens"]) == len(answer["origin"]) == answer["stats"]["tokens"] <= 24
    assert answer["stats"]["mean_acceptance_length"] == answer["stats"]["tokens"] / answer["stats"]["cycles"]


def test_colours_mark_the_origin(capsys, answering):
    _, plain, _ = run(capsys, *answering, "--verifier", "none", "hello there")
    status, out, _ = run(capsys, *answering, "--verifier", "none", "--color", "always", "hello there")
    assert status == 0
    assert out.replace("\x1b[36m", "").replace("\x1b[0m", "") == plain
    assert "\x1b[36m" in out and "\x1b[32m" not in out  # plain decoding has no draft


def test_the_prompt_may_come_from_a_file_or_from_standard_input(capsys, answering, tmp_path, monkeypatch):
    import io

    (tmp_path / "prompt.txt").write_text("hello there\n")
    _, argument, _ = run(capsys, *answering, "hello there")
    _, file, _ = run(capsys, *answering, "--file", tmp_path / "prompt.txt")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello there\n"))
    _, stdin, _ = run(capsys, *answering)
    assert argument == file == stdin


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "./nowhere"], "no such folder"),
        (["--verifier", "kl:often"], "often"),
        (["--verifier", "kl:nan"], "nan"),
        (["--verifier", "magic"], "magic"),
        (["--draft-length", "0"], "a draft length is"),
        (["--draft-length", "x"], "a draft length is"),
        (["--drafter", "magic"], "choose a drafter"),
        (["--temperature", "-1"], "temperature"),
        (["--mesh", "data=99"], "needs 99 devices"),
        (["--mesh", "depth=2"], "mesh"),
        (["--max-new-tokens", "100000"], "takes"),
        (["--file", "./no-such-prompt.txt"], "not both"),
        (["--system", "be brief", "--raw"], "--system"),
        (["--stop", ""], "stop"),
        (["--top-p", "2"], "top_p"),
        (["--seed", "-1"], "--seed"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
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
    words = ["--target", tiny_folders.broken, "--draft", tiny_folders.draft, "--draft-length", DRAFT_LENGTH]
    status, out, err = run(capsys, "generate", *words, "--max-new-tokens", "24", "--json", "hello")
    assert status == 1
    assert json.loads(out)["finish"] == "failed"
    assert "NaN" in err


def test_a_draft_that_returns_nan_is_told_and_the_target_answers_alone(capsys, tiny_folders, answering, tmp_path):
    plain = json.loads(run(capsys, *answering, "--json", "--verifier", "none", "hello")[1])
    words = [*answering, "--draft", tiny_folders.broken, "--verifier", "exact", "--json", "hello"]
    status, out, err = run(capsys, *words)
    assert status == 0 and json.loads(out)["tokens"] == plain["tokens"]
    assert "the draft returned NaN or +inf: the target went on alone" in err


def test_a_sweep_says_where_the_draft_returned_nan(capsys, sweeping, tiny_folders):
    words = [tiny_folders.broken if word == tiny_folders.draft else word for word in sweeping]
    status, _, err = run(capsys, *words, "--rules", "none,exact", "--n", "2")
    assert status == 0
    assert "exact @ 4: the draft returned NaN or +inf in 2 answers, which the target went on with alone: " in err


def test_a_sweep_names_the_problems_in_which_a_model_returned_nan(capsys, sweeping, tiny_folders, tmp_path):
    """And compares nothing with a plain decoding that wrote nothing."""
    words = [tiny_folders.broken if word == tiny_folders.target else word for word in sweeping]
    status, _, err = run(capsys, *words, "--rules", "none,kl:0.4", "--n", "2")
    assert status == 1
    for rule in ("none", "kl:0.4 @ 4"):
        (line,) = [line for line in err.splitlines() if line.startswith(f"kljudge sweep: prompts, {rule}: ")]
        assert re.search(r"NaN or \+inf in 2 answers: prompts/\d, prompts/\d$", line)
    cells = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    assert [cell["failed"] for cell in cells] == [2, 2] and [cell["speed"] for cell in cells] == [None, None]


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "kljudge_jax.cli", "rules"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, env=buffered, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_needs_no_jax_and_shows_examples():
    program = (
        "import sys; from kljudge_jax import cli\ntry: cli.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "kljudge generate --target" in shown.stdout.partition("examples:\n")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweap"], "kljudge: no command 'sweap': did you mean sweep? See kljudge --help\n"),
        (["xyzzy"], "kljudge: no command 'xyzzy'; see kljudge --help\n"),
        (["rules", "--jsno"], "kljudge rules: no option --jsno: did you mean --json? See kljudge rules --help\n"),
        (["rules", "--jso"], "kljudge rules: no option --jso: did you mean --json? See kljudge rules --help\n"),
        (["generate", "--targt", "x", "hi"], "no option --targt: did you mean --target? See kljudge generate --help\n"),
        (["generate", "--targt=x", "hi"], "no option --targt: did you mean --target? See kljudge generate --help\n"),
        (["rules", "more", "words"], "kljudge rules: too many arguments: more words; see kljudge rules --help\n"),
        (["--verson"], "kljudge: no option --verson: did you mean --version? See kljudge --help\n"),
    ],
)
def test_a_misspelt_word_is_named_first(capsys, words, said):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and err.endswith(said) and err.count("\n") == 1


def test_rules_lists_every_rule(capsys):
    status, out, _ = run(capsys, "rules")
    assert status == 0
    assert "kl:threshold=..." in out and "lossless" in out and "2601.04766" in out
    status, out, _ = run(capsys, "rules", "--json")
    assert {"kl", "exact", "all", "random"} <= {row["spec"] for row in json.loads(out)}


def test_convert_writes_a_folder_that_answers_alike(capsys, answering, tiny_folders, tmp_path):
    _, before, _ = run(capsys, *answering, "hello there")
    status, out, _ = run(capsys, "convert", tiny_folders.target, tmp_path / "converted")
    assert status == 0 and out.strip() == str(tmp_path / "converted")
    words = [tmp_path / "converted" if word == tiny_folders.target else word for word in answering]
    _, after, _ = run(capsys, *words, "hello there")
    assert after == before


@pytest.fixture
def sweeping(folders, tmp_path):
    """A sweep of short problems, less its rules."""
    lines = [json.dumps({"prompt": f"text {i}", "answer": "abcdefgh"[i]}) for i in range(8)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    words = ["sweep", *folders, "--task", f"prompts:{tmp_path / 'problems.jsonl'}", "--split", "all", "--n", "8"]
    words += ["--batch", "1", "--examples", "0"]
    return [*words, "--draft-lengths", DRAFT_LENGTH, "--out", tmp_path / "out"]


def test_sweep_writes_answers_and_a_table_and_goes_on(capsys, sweeping, tmp_path):
    words = [*sweeping, "--rules", "none, exact,kl:threshold=4.0,confidence=0.9"]
    status, table, _ = run(capsys, *words)
    assert status == 0
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in table
    answers = (tmp_path / "out" / "answers.jsonl").read_text()
    assert len(answers.splitlines()) == 8 * 3
    assert sum(line.startswith("|") for line in table.splitlines()) == 2 + 3
    exact = next(line for line in table.splitlines() if line.startswith("| exact"))
    assert exact.split("|")[7].strip() == "8"  # the same text as plain decoding
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["kind"] == "sweep" and summary["command"].startswith("kljudge sweep --target")
    cells = summary["cells"]
    assert [cell["rule"] for cell in cells] == ["none", "exact", "kl:threshold=4.0,confidence=0.9"] and cells[1][
        "speed"
    ] > 0

    # A kill in the middle of a line loses that batch and no other.
    (tmp_path / "out" / "answers.jsonl").write_text(answers[: len(answers) * 2 // 3])
    status, _, _ = run(capsys, *words)
    assert status == 0

    def texts(lines):
        records = [json.loads(line) for line in lines.splitlines()]
        return sorted((r["rule"], r["draft_length"], r["problem"], r["text"]) for r in records)

    assert texts((tmp_path / "out" / "answers.jsonl").read_text()) == texts(answers)
    status, _, err = run(capsys, *words, "--seed", "8")
    assert status == 2 and "another sweep" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rules", "none,magic"], "magic"),
        (["--draft-lengths", "4,x"], "a draft length is a whole number"),
        (["--seeds", "7;8"], "whole numbers"),
        (["--examples", "-1"], "--examples: numbers start at 0"),
        (["--draft-lengths", "0"], "from 1 on"),
        (["--n", "0"], "start at 1"),
        (["--n", "9"], "holds 8 problems"),
        (["--task", "chess"], "chess"),
        (["--split", "most"], "most"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(capsys, sweeping, words, message):
    status, out, err = run(capsys, *sweeping, *words)
    assert status == 2
    assert out == "" and message in err
    assert len(err.strip().splitlines()) == 1


def test_a_sweep_of_several_tasks_and_seeds_is_one_report(capsys, sweeping, tmp_path):
    other = tmp_path / "gsm8k.jsonl"
    other.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    task = f"{sweeping[sweeping.index('--task') + 1]},gsm8k:{other}"
    words = ["--task", task, "--rules", "none,kl:0.1/4.0", "--n", "1", "--seeds", "1,2"]
    status, out, _ = run(capsys, *sweeping, *words)
    assert status == 0
    folder = tmp_path / "out"
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    assert folders == {"prompts-seed1", "prompts-seed2", "gsm8k-seed1", "gsm8k-seed2"}
    assert "prompts:" in out and "gsm8k:" in out and "| kl:0.1 |" in out and "| kl:4.0 |" in out
    cells = json.loads((folder / "summary.json").read_text())["cells"]
    assert [(cell["task"], cell["rule"]) for cell in cells[3:]] == [
        ("gsm8k", "none"), ("gsm8k", "kl:0.1"), ("gsm8k", "kl:4.0")
    ]  # fmt: skip
    assert all(cell["n"] == 1 for cell in cells[3:])  # both seeds drew the one problem


def test_a_sweep_without_a_draft_is_plain_and_shows_an_answer(capsys, sweeping, tiny_folders, tmp_path):
    words = [word for word in sweeping if word not in ("--draft", tiny_folders.draft)]
    status, table, _ = run(capsys, *words, "--rules", "none", "--n", "4", "--examples", "1")
    assert status == 0 and table.count("| plain |") == 1
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("<details") == 1 and 'class="target"' in report
    status, _, err = run(capsys, *words, "--rules", "none,exact", "--n", "4")
    assert status == 2 and "--draft" in err


def test_a_sweep_asks_in_text_where_there_is_no_chat_template(capsys, folders, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    words = ["sweep", *folders, "--task", f"gsm8k:{tmp_path / 'gsm8k.jsonl'}", "--split", "all", "--n", "1"]
    status, table, _ = run(
        capsys, *words, "--rules", "none", "--batch", "1", "--examples", "0", "--out", tmp_path / "out"
    )
    assert status == 0 and "| 0 of 1 |" in table


def test_every_command_says_what_ctrl_c_leaves(capsys):
    for name, command in commands().items():
        said = command.stopped.format(**{param.name: "here" for param in command.params})  # names options that it has
        assert "repeat the command" in said and "{" not in said, name
        help = command.get_help(click.Context(command, info_name=name))
        assert "kljudge " + name in help.partition("examples:\n")[2], name


def test_a_stopped_sweep_goes_on_from_what_it_kept(capsys, sweeping, tmp_path, monkeypatch):
    from kljudge_jax.evaluation.sweep import run as sweep

    words, out = [*sweeping, "--rules", "none,exact", "--n", "2"], tmp_path / "out"
    answer, answered = sweep.answer, []

    def stop_at_the_third(pair, task, plan, cell, *others):
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(cell)
        return answer(pair, task, plan, cell, *others)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "answer", stop_at_the_third)
        status, _, err = run(capsys, *words)
    assert status == 130
    kept = f"kljudge sweep: stopped; every batch that was answered is in {out}: repeat the command to go on"
    assert err.strip() == kept
    assert len((out / "answers.jsonl").read_text().splitlines()) == 2
    assert run(capsys, *words)[0] == 0
    assert len((out / "answers.jsonl").read_text().splitlines()) == 4


def test_a_warning_is_a_line_of_the_command(capsys):
    log = logging.getLogger("kljudge_jax.parallel.placement")
    with plain_warnings("sweep"):
        log.warning("3 heads do not divide over %s", "tensor=2")
    assert capsys.readouterr().err == "kljudge sweep: 3 heads do not divide over tensor=2\n"
    assert not logging.getLogger("kljudge_jax").handlers and logging.getLogger("kljudge_jax").propagate


def test_a_device_without_memory_left_is_one_line_that_says_what_to_do(capsys, answering, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore")

    monkeypatch.setattr(generate, "load_pair", full)
    status, out, err = run(capsys, *answering, "hello there")
    assert status == 1 and out == ""
    assert len(err.strip().splitlines()) == 1
    assert "too little memory" in err and "lower --batch" in err


@pytest.mark.parametrize("number, filename", [(errno.ENOSPC, "out/answers.jsonl"), (errno.EROFS, None)])
def test_a_disk_that_takes_no_more_is_one_line_and_exit_1(capsys, monkeypatch, number, filename):
    def refused(options):
        raise OSError(number, os.strerror(number), *([filename] if filename else []))

    monkeypatch.setattr(rules.rules, "run", refused)
    assert main(["rules"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"kljudge rules: {filename}: " if filename else "kljudge rules: ")
    assert os.strerror(number) in said and said.count("\n") == 1


def test_an_encoding_that_lacks_a_character_shows_its_number(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(rules.rules, "run", lambda options: print("na\u00efve") or 0)
    assert main(["rules"]) == 0
    assert written.buffer.getvalue() == b"na\\xefve\n"

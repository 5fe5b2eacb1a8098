"""`kljudge calibrate` on tiny models: the whole way, and what it refuses."""

import json

import pytest
from tiny_pairs import DRAFT_LENGTH

from kljudge_jax.cli import main


@pytest.fixture
def words(tiny_folders, tmp_path):
    """A calibration on eight prompts without answers."""
    (tmp_path / "prompts.txt").write_text("".join(f"text {i}\n" for i in range(8)))
    words = ["calibrate", "--target", tiny_folders.target, "--draft", tiny_folders.draft, "--max-new-tokens", "24"]
    words += ["--task", f"prompts:{tmp_path / 'prompts.txt'}", "--without-answers", "--split", "all", "--n", "8"]
    words += ["--batch", "1", "--draft-length", DRAFT_LENGTH, "--out", tmp_path / "out", "--budget", "40"]
    return [str(word) for word in words]


def run(capsys, *words):
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_a_threshold_is_chosen_and_written(capsys, words, tmp_path):
    words += ["--rule", "kl:confidence=1.0", "--thresholds=-2,-1,99"]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "Promised: kl:confidence=1.0,threshold=-1" in out and "--verifier kl:confidence=1.0,threshold=-1" in out
    found = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert found["kind"] == "calibrate" and found["threshold"] == -1.0 and found["command"] == words
    assert [one["promised"] for one in found["tested"]] == [True, True, False]
    assert run(capsys, *words)[:2] == (0, out)
    status, _, err = run(capsys, *words, "--delta", "0.1")
    assert status == 2 and "name a new folder" in err


def test_where_nothing_passes_it_says_exact(capsys, words, tmp_path):
    status, out, _ = run(capsys, *words, "--rule", "kl:confidence=1.0", "--thresholds", "99")
    assert status == 0 and "Nothing is promised: use exact decoding." in out and "--verifier exact" in out
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["threshold"] is None


def test_a_set_that_is_too_small_says_how_many_and_answers_nothing(capsys, words, tmp_path):
    status, out, _ = run(capsys, *words, "--budget", "10")
    assert status == 0
    assert "8 prompts are too few" in out and "takes 29 (--n)" in out and "--verifier exact" in out
    found = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert found["threshold"] is None and found["smallest_n"] == 29
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.slow
def test_the_embedded_pair_end_to_end_with_a_check(capsys, tmp_path):
    words = ["calibrate", "--target", "embedded", "--task", "conversion", "--rule", "kl", "--thresholds", "0.05"]
    words += ["--budget", "50", "--n", "8", "--check-n", "8", "--batch", "8", "--max-new-tokens", "96"]
    status, out, _ = run(capsys, *words, "--out", tmp_path)
    assert status == 0 and "Promised: kl:0.05" in out and "Checked on 8 fresh prompts (test)" in out
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["check"]["outcome"]["n"] == 8 and found["tested"][0]["plain_right"] > 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--budget", "0"], "budget is in points"),
        (["--budget", "-1"], "budget is in points"),
        (["--budget", "nan"], "budget is in points"),
        (["--delta", "1"], "delta is a risk"),
        (["--n", "0"], "start at 1"),
        (["--check-n", "-1"], "start at 0"),
        (["--rule", "magic"], "choose one of the rules"),
        (["--rule", "exact"], "lossless"),
        (["--rule", "none"], "plain decoding"),
        (["--rule", "all"], "threshold"),
        (["--rule", "fuzzy", "--thresholds", "0.1,0.2"], "divergence"),
        (["--thresholds", "0.1,0.4,0.2"], "from strict to relaxed"),
        (["--thresholds", "0.4,0.2"], "from small to large"),
        (["--rule", "entropy", "--thresholds", "1,1"], "from strict to relaxed"),
        (["--thresholds", "0.1,x"], "'x'"),
        (["--thresholds", ""], "''"),
        (["--drafter", "magic"], "choose a drafter"),
        (["--check-n", "5"], "check_split"),
        (["--task", "chess"], "chess"),
        (["--n", "9"], "holds 8 problems"),
    ],
)
def test_bad_input_is_one_line(capsys, words, change, message):
    status, out, err = run(capsys, *words, *change)
    assert status == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1

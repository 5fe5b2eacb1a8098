"""From mining to the report by the commands, and what they refuse."""

import json

import pytest
from judge_data import PAIR, made_dataset

from kljudge_jax.cli import main
from kljudge_jax.judges.dataset import DatasetWriter, read_dataset


@pytest.fixture
def mined(tmp_path):
    """A folder as `mine` leaves it, of mismatches that can be told apart."""
    made = made_dataset()
    with DatasetWriter(tmp_path / "mined", PAIR, {"task": "made"}, 9) as writer:
        rows = [{name: values[i] for name, values in made.columns.items()} for i in range(len(made))]
        writer.append([({"question": q}, [r for r in rows if r["question"] == q]) for q in range(40)])
    return tmp_path / "mined"


def test_a_judge_is_trained_and_compared(mined, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kljudge_jax.judges.training.C_GRID", (0.01, 1.0))
    assert main(["train-judge", str(mined), str(tmp_path / "judge")]) == 0
    out = capsys.readouterr().out
    assert "validation AUC" in out and "(advised)" in out and str(tmp_path / "judge") in out
    assert main(["correspond", str(mined), str(tmp_path / "judge"), str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "rank correlation" in out and str(tmp_path / "report") in out


def test_mining_fills_a_folder(tiny_folders, tmp_path, capsys):
    words = ["mine", "--target", tiny_folders.target, "--draft", tiny_folders.draft, "--task", "arithmetic"]
    words += ["--n", "2", "--batch", "2", "--max-new-tokens", "24", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr()
    assert "0 mismatches" in out.out  # a random model answers nothing
    assert out.err == ""  # no terminal, no progress


@pytest.mark.parametrize("labels", ["likelihood", "rollouts", "marked"])
def test_other_labels_fill_a_folder_too(labels, tiny_folders, tmp_path, capsys):
    words = ["mine", "--target", tiny_folders.target, "--draft", tiny_folders.draft, "--labels", labels]
    if labels == "marked":
        lines = [{"prompt": "ab", "answer": "cdef", "wrong_from": at} for at in (None, 2)]
        (tmp_path / "marked.jsonl").write_text("\n".join(map(json.dumps, lines)))
        words += ["--answers", tmp_path / "marked.jsonl"]
    else:
        words += ["--task", "arithmetic", "--n", "1", "--max-new-tokens", "8"]
    assert main([str(word) for word in [*words, "--out", tmp_path / "out"]]) == 0
    out = capsys.readouterr()
    assert out.err == "" and str(tmp_path / "out") in out.out
    origin = read_dataset(tmp_path / "out").origin["labels"]
    assert origin == {"likelihood": "selfjudge", "rollouts": "pivot", "marked": "judge-decoding"}[labels]


def test_code_is_run_only_when_allowed(capsys, tmp_path):
    """Refused before a model is looked for; allowed, the model is what is missing."""
    line = {"task_id": "MBPP/1", "text": "Add.", "code": "def f(a): return a", "test_list": ["assert f(1) == 1"]}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(line | {"prompt": "Add."}))
    words = ["mine", "--target", "./nowhere", "--draft", "./nowhere", "--task", f"mbpp:{tmp_path / 'mbpp.jsonl'}"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 2 and "allow it with --run-code" in capsys.readouterr().err
    assert main([*words, "--run-code"]) == 2 and "nowhere" in capsys.readouterr().err


def test_other_questions_are_not_mixed_into_a_folder(tiny_folders, tmp_path, capsys):
    words = ["mine", "--target", tiny_folders.target, "--draft", tiny_folders.draft, "--labels", "marked"]
    for name, answer in (("a", "cdef"), ("b", "fedc")):
        (tmp_path / name).mkdir()
        line = {"prompt": "ab", "answer": answer, "wrong_from": None}
        (tmp_path / name / "marked.jsonl").write_text(json.dumps(line))
    words = [[*words, "--answers", tmp_path / name / "marked.jsonl", "--out", tmp_path / "out"] for name in "ab"]
    first, other = ([str(word) for word in of] for of in words)
    assert main(first) == main(first) == 0
    assert main(other) == 2
    assert "other questions than these (question 0 is another): name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [
                "mine",
                "--target",
                "embedded",
                "--task",
                "arithmetic",
                "--labels",
                "likelihood",
                "--reference",
                "gold",
                "--out",
                "x",
            ],
            "--labels likelihood does not read --reference",
        ),
        (
            ["mine", "--target", "embedded", "--task", "arithmetic", "--rollouts", "3", "--out", "x"],
            "--labels semi-greedy does not read --rollouts",
        ),
        (
            ["mine", "--target", "embedded", "--labels", "marked", "--answers", "a", "--n", "3", "--out", "x"],
            "--labels marked does not read --n",
        ),
        (["mine", "--target", "embedded", "--out", "x"], "name a --task"),
        (["mine", "--target", "embedded", "--labels", "marked", "--task", "arithmetic", "--out", "x"], "--answers"),
        (["mine", "--target", "embedded", "--answers", "a.jsonl", "--out", "x"], "--labels marked"),
        (["mine", "--target", "./nowhere", "--task", "arithmetic", "--out", "x"], "--draft"),
        (["mine", "--target", "./nowhere", "--draft", "./nowhere", "--task", "magic", "--out", "x"], "magic"),
        (["mine", "--target", "embedded", "--task", "arithmetic", "--shortcut", "2", "--out", "x"], "shortcut"),
        (["train-judge", "./nowhere", "x"], "nowhere"),
        (["train-judge", "./nowhere", "x", "--seed", "-1"], "a seed starts at 0"),
        (["correspond", "./nowhere", "./nowhere", "x"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1

"""Files of problems: what is refused, and splits that keep apart."""

import gzip
import json

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.files import FileTask, read_problems
from kljudge_jax.tasks.gsm8k import GSM8K, GSM8KRecord


def write_gsm8k(path, count=300):
    lines = [
        json.dumps({"question": f"What is {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"}) for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_reads_plain_and_gzipped_lines(tmp_path):
    plain = write_gsm8k(tmp_path / "a.jsonl", 3)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain, GSM8KRecord) == read_problems(zipped, GSM8KRecord)
    assert len(read_problems(plain, GSM8KRecord)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "x"}', "line 1: object missing required field answer"),
        ('{"question": "x", "answer": "1"}\n[1, 2]', "line 2: expected object, got array"),
        ("{not json}", "line 1: is no JSON"),
        ("\n\n", "holds no problem"),
    ],
)
def test_refuses_files_of_another_kind(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_problems(path, GSM8KRecord)


def test_refuses_what_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="local file"):
        read_problems(tmp_path / "missing.jsonl", GSM8KRecord)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "plain.jsonl.gz").write_bytes(b"no gzip")
    for name in ("binary.jsonl", "plain.jsonl.gz"):
        with pytest.raises(InputError, match=r"is no UTF-8 text|cannot be read"):
            read_problems(tmp_path / name, GSM8KRecord)


def test_splits_partition_the_file(tmp_path):
    task = GSM8K(write_gsm8k(tmp_path / "a.jsonl"))
    assert isinstance(task, FileTask)
    ids = {split: {p.id for p in task.problems(split, None)} for split in ("train", "validation", "test", "all")}
    assert ids["train"] | ids["validation"] | ids["test"] == ids["all"]
    assert sum(len(ids[split]) for split in ("train", "validation", "test")) == len(ids["all"]) == 300
    assert len(ids["train"]) > len(ids["test"]) > len(ids["validation"]) > 10


def test_the_split_is_the_questions_own(tmp_path):
    path = write_gsm8k(tmp_path / "a.jsonl")
    chats, texts = GSM8K(path, chat=True), GSM8K(path, chat=False)
    for split in ("train", "validation", "test"):
        assert [p.id for p in chats.problems(split, None)] == [p.id for p in texts.problems(split, None)]


def test_order_follows_the_seed(tmp_path):
    task = GSM8K(write_gsm8k(tmp_path / "a.jsonl"))
    assert task.problems("all", 20, seed=1) == task.problems("all", None, seed=1)[:20]
    assert task.problems("all", 20, seed=1) != task.problems("all", 20, seed=2)


def test_refuses_too_many_and_unknown_splits(tmp_path):
    task = GSM8K(write_gsm8k(tmp_path / "a.jsonl", 20))
    with pytest.raises(InputError, match="holds 20 problems"):
        task.problems("all", 21)
    with pytest.raises(InputError, match="choose one of"):
        task.problems("dev")

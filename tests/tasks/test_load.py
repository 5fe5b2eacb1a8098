import json

import pytest

import kljudge_jax.tasks as tasks
from kljudge_jax.errors import InputError
from kljudge_jax.tasks import load
from kljudge_jax.tasks.base import Task

FILES = {
    "gsm8k": {"question": "q", "answer": "#### 1"},
    "math500": {"problem": "q", "answer": "1"},
    "mbpp": {"text": "t", "code": "x = 1", "test_list": ["assert x"]},
    "humaneval": {"task_id": "a", "prompt": "def f():", "entry_point": "f", "canonical_solution": "", "test": ""},
    "prompts": {"prompt": "p"},
}


@pytest.mark.parametrize("name", ["arithmetic", "conversion"])
def test_our_own(name):
    task = tasks.load_task(name)
    assert isinstance(task, Task) and task.name == name
    assert len(task.problems(n=3)) == 3


@pytest.mark.parametrize("name", FILES)
def test_from_a_file(tmp_path, name):
    path = tmp_path / "a:b.jsonl"
    path.write_text(json.dumps(FILES[name]))
    task = tasks.load_task(f"{name}:{path}")
    assert isinstance(task, Task) and task.name == name
    (problem,) = task.problems("all", None)
    assert isinstance(problem.prompt, str) is (name == "prompts")
    (problem,) = tasks.load_task(f"{name}:{path}", chat=False).problems("all", None)
    assert isinstance(problem.prompt, str)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("arithmatic", "There is no task 'arithmatic': choose one of arithmetic"),
        ("gsm8k", "write 'gsm8k:FILE'"),
        ("gsm8k:", "write 'gsm8k:FILE'"),
        ("arithmetic:x.jsonl", "without a file"),
        ("mbpp:missing.jsonl", "local file"),
        ("", "There is no task"),
    ],
)
def test_refusals_say_what_to_do(spec, message):
    with pytest.raises(InputError, match=message):
        tasks.load_task(spec)


class Echo:
    name = "echo"

    def problems(self, split="test", n=200, seed=7):
        return [tasks.Problem(str(i), f"Say {i}.", str(i)) for i in range(n)]

    def check(self, problem, text):
        return problem.answer in text


def test_a_task_of_ones_own_is_known_by_its_name(monkeypatch, tmp_path):
    for known in ("_OURS", "_FROM_FILES"):
        monkeypatch.setattr(load, known, dict(getattr(load, known)))
    assert tasks.register_task(Echo) is Echo
    assert tasks.load_task("echo").check(tasks.load_task("echo").problems(n=3)[2], "2")

    class Read(Echo):  # a cell that is run again, changed
        from_file = True

        def __init__(self, path):
            self.path = path

    tasks.register_task(Read)
    assert tasks.load_task(f"echo:{tmp_path}").path == str(tmp_path)
    with pytest.raises(InputError, match="echo is read from a file"):
        tasks.load_task("echo")


def test_a_task_that_is_none_or_has_the_name_of_another_is_refused():
    with pytest.raises(InputError, match="Half lacks 'check'"):
        tasks.register_task(type("Half", (), {"name": "half", "problems": Echo.problems}))
    with pytest.raises(InputError, match="Mine has the name of a task of this package, 'gsm8k'"):
        tasks.register_task(type("Mine", (Echo,), {"name": "gsm8k"}))

import json

import pytest

import kljudge_jax.tasks as tasks
from kljudge_jax.errors import InputError
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

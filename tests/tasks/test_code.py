"""Code cut out of answers, and the two published tasks on files of their shape."""

import json

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.code import CodeProblem, code_of
from kljudge_jax.tasks.humaneval import HumanEval
from kljudge_jax.tasks.mbpp import MBPP

HEADER = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Adds."""\n'
COMPLETED = CodeProblem("x", HEADER, "total", header=HEADER, function="total")


def defines_total(source):
    scope = {}
    exec(source, scope)
    return scope["total"]([1, 2])


@pytest.mark.parametrize(
    "text",
    [
        "    return sum(numbers)\n",
        "    return sum(numbers)\n\n\ndef main():\n    syntax error here",
        "    return sum(numbers)\n\nprint(total([1]))\n",
        "```python\n    return sum(numbers)\n```",
        "Sure!\n```python\ndef total(numbers: List[int]) -> int:\n    return sum(numbers)\n```\nThat adds.",
        "```\ndef total(numbers):\n    return add(numbers)\n```\nwith\n```py\ndef add(x):\n    return sum(x)\n```",
        "```python\ndef total(numbers):\n    return sum(numbers)\n",
    ],
)
def test_code_of_a_completion_or_a_chat(text):
    assert defines_total(code_of(COMPLETED, text)) == 3


def humaneval_file(tmp_path):
    path = tmp_path / "HumanEval.jsonl"
    record = {
        "task_id": "HumanEval/0",
        "prompt": HEADER,
        "entry_point": "total",
        "canonical_solution": "    return sum(numbers)\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    }
    path.write_text(json.dumps(record))
    return path


def mbpp_file(tmp_path):
    path = tmp_path / "mbpp.jsonl"
    record = {
        "task_id": 7,
        "text": "Write a function to double a number.",
        "code": "def double(x):\r\n    return FACTOR * x",
        "test_setup_code": "FACTOR = 2",
        "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
    }
    path.write_text(json.dumps(record))
    return path


def test_humaneval(tmp_path):
    task = HumanEval(humaneval_file(tmp_path), run_code=True)
    (problem,) = task.problems("all", None)
    assert HEADER.strip() in problem.prompt[0]["content"]
    assert HumanEval(humaneval_file(tmp_path), chat=False).problems("all", None)[0].prompt == HEADER
    assert task.check(problem, problem.solution)
    assert not task.check(problem, "    return len(numbers)\n")
    assert not task.check(problem, "I cannot do that.")


def test_mbpp(tmp_path):
    task = MBPP(mbpp_file(tmp_path), run_code=True)
    (problem,) = task.problems("all", None)
    assert "assert double(2) == 4" in problem.prompt[0]["content"]
    assert task.check(problem, f"```python\n{problem.solution}\n```")
    assert not task.check(problem, "```python\ndef double(x):\n    return 4\n```")
    assert not task.check(problem, "```python\nimport os\nos._exit(0)\n```")


@pytest.mark.parametrize(("task", "file"), [(HumanEval, humaneval_file), (MBPP, mbpp_file)])
def test_code_runs_only_when_allowed(tmp_path, task, file):
    marker = tmp_path / "ran"
    task = task(file(tmp_path))
    (problem,) = task.problems("all", None)
    with pytest.raises(InputError, match="run_code=True"):
        task.check(problem, f"open({str(marker)!r}, 'w')")
    assert not marker.exists()

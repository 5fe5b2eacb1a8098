import json

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.gsm8k import GSM8K

RECORD = {
    "question": "Ann sells 16 - 3 eggs for $2 each. How much is that?",
    "answer": "She sells 16-3=<<16-3=13>>13 eggs.\nThat is 13*2=$<<13*2=26>>26.\n#### 26",
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps({"question": "Big?", "answer": "#### 1,200"}))
    return path


def test_asks_for_steps_and_a_marked_answer(path):
    (problem, _) = sorted(GSM8K(path).problems("all", None), key=lambda p: p.id)
    ((turn),) = problem.prompt
    assert turn["role"] == "user"
    assert turn["content"].startswith(RECORD["question"])
    assert "step by step" in turn["content"] and "\\boxed{}" in turn["content"]
    assert problem.answer == "26"
    assert problem.solution == "She sells 16-3=13 eggs.\nThat is 13*2=$26.\n#### 26"


def test_text_prompt_for_models_without_a_chat(path):
    assert all(isinstance(problem.prompt, str) for problem in GSM8K(path, chat=False).problems("all", None))


def test_check(path):
    task = GSM8K(path)
    small, large = sorted(task.problems("all", None), key=lambda p: p.id)
    assert task.check(small, small.solution)
    assert task.check(small, "16-3=13 and 13*2=26. The final answer is $26.00.")
    assert not task.check(small, "16-3=13. The final answer is 13.")
    assert not task.check(small, "I do not know.")
    assert task.check(large, "#### 1200") and task.check(large, "\\boxed{1,200}")


def test_refuses_an_answer_without_a_number(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "no marker"}))
    with pytest.raises(InputError, match="Problem 1 of"):
        GSM8K(path)

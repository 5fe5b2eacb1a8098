import json

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.prompts import Prompts


def test_a_text_file_holds_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\ntwo\n")
    assert {problem.prompt for problem in Prompts(path).problems("all", None)} == {"one", "two"}
    (chat, _) = Prompts(path, chat=True).problems("all", None)
    assert chat.prompt[0]["role"] == "user"


def test_answers_that_come_along_are_checked(tmp_path):
    path = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "Capital of France?"}]
    rows = [{"prompt": "2+2?", "answer": 4}, {"prompt": turns, "answer": "Paris"}, {"prompt": "Sing."}]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = Prompts(path)
    number, word, open_ended = sorted(task.problems("all", None), key=lambda p: p.id)
    assert task.check(number, "It is 4.") and not task.check(number, "It is 5, not 4, no: 5.")
    assert word.prompt == turns
    assert task.check(word, "It is Paris.") and not task.check(word, "Lyon")
    with pytest.raises(InputError, match="no answer to check"):
        task.check(open_ended, "la la")


@pytest.mark.parametrize("prompt", ["", 3, [], [{"role": "user"}]])
def test_refuses_what_is_no_prompt(tmp_path, prompt):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": prompt}))
    with pytest.raises(InputError, match=r"line 1.*prompt"):
        Prompts(path)


def test_refuses_an_empty_file(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="one a line"):
        Prompts(tmp_path / "empty.txt")

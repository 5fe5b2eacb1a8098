"""What a draft is trained on, where the prompts are chats whose template is told something."""

import dataclasses
import json

import pytest
from tiny_pairs import byte_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.models.fingerprint import weights_digest
from kljudge_jax.tasks.base import Problem
from kljudge_jax.training.draft_corpus import gold_answers, own_answers

PROBLEMS = [Problem(str(i), [{"role": "user", "content": text}], "", text) for i, text in enumerate(("abc", "de"))]


@pytest.fixture
def chat_pair(text_pair):
    made = byte_tokenizer()
    made.chat_template = "{{ messages[0].content }}{% if brief %}!{% endif %}"
    return dataclasses.replace(text_pair, tokenizer=made)


def test_the_prompts_are_those_of_the_arguments_and_others_are_refused(chat_pair, tmp_path):
    given = {"max_new_tokens": 8, "template_args": {"brief": True}}
    with pytest.raises(InputError, match="lower max_new_tokens"):  # which binds no call after it
        own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", max_new_tokens=10**6)
    lines = own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", **given)
    assert [chat_pair.tokenizer.decode(line.prompt) for line in lines] == ["abc!", "de!"]
    assert all(len(line.answer) for line in lines)
    assert own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", **given) == lines
    with pytest.raises(InputError, match="holds an answer to 0 by other template_args"):
        own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", max_new_tokens=8)
    with pytest.raises(InputError, match="holds an answer to 0, and 1 was asked: choose an empty folder"):
        own_answers(chat_pair, PROBLEMS[1:], tmp_path / "corpus.jsonl", **given)
    gold = gold_answers(chat_pair, PROBLEMS, {"brief": True})
    assert [line.prompt for line in gold] == [line.prompt for line in lines]


def test_answers_of_another_configuration_are_refused_and_those_of_an_early_version_go_on(
    chat_pair, tmp_path, monkeypatch
):
    path = tmp_path / "corpus.json"
    lines = own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", max_new_tokens=8)
    new = json.loads(path.read_text())
    path.write_text(json.dumps(new | {"target": weights_digest(chat_pair.target)}))
    assert own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", max_new_tokens=8) == lines
    assert json.loads(path.read_text()) == new
    config = dataclasses.replace(chat_pair.target.config, norm_eps=1e-3)
    monkeypatch.setattr(chat_pair.target, "config", config)
    with pytest.raises(InputError, match="answers that differ in target: choose an empty folder"):
        own_answers(chat_pair, PROBLEMS, tmp_path / "corpus.jsonl", max_new_tokens=8)

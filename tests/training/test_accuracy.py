"""The share of right answers, against greedy decoding the plain way: one full pass a token."""

import jax
import numpy as np
import pytest

from kljudge_jax.models.transformer import Transformer
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.training.accuracy import accuracy


@pytest.fixture(scope="module")
def model(config):
    return jax.jit(lambda key: Transformer(config, key))(jax.random.key(3))


@jax.jit
def all_logits(model, tokens):
    return model.logits(model(tokens)[0].hidden)


def one_by_one(model, prompt, eos, count):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count and tokens[-1] != eos:
        padded = np.zeros((1, 256), np.int32)  # of one width, which is compiled once: no token sees what comes after it
        padded[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(all_logits(model, padded)[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


class Heard:
    """A task that notes what it is asked to check, and calls every fifth answer wrong."""

    def __init__(self):
        self.texts = []

    def check(self, problem, text):
        self.texts.append(text)
        return len(self.texts) % 5 != 0


def test_greedy_answers_are_checked_each_with_its_problem(model, tokenizer):
    problems, task = Arithmetic().problems("validation", 10), Heard()
    assert accuracy(model, tokenizer, task, problems, max_new_tokens=6, batch_size=4) == 0.8
    for problem, text in zip(problems, task.texts, strict=True):
        tokens = one_by_one(model, tokenizer(problem.prompt)["input_ids"], tokenizer.eos_token_id, 6)
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_right_answers_are_counted(model, tokenizer, monkeypatch):
    problems = Arithmetic().problems("validation", 10)
    texts = [p.solution if i % 5 else "#### 0" for i, p in enumerate(problems)]
    given = type("Given", (), {"text": texts})
    monkeypatch.setattr("kljudge_jax.training.accuracy.generate", lambda *_, **__: given)
    assert accuracy(model, tokenizer, Arithmetic(), problems) == 0.8

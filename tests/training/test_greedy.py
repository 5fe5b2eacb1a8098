"""Greedy decoding against the plain way: one full pass a token."""

import jax
import numpy as np
import pytest

from kljudge_jax.models.transformer import Transformer
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.training import greedy as module
from kljudge_jax.training.greedy import accuracy, greedy


@pytest.fixture(scope="module")
def model(config):
    return jax.jit(lambda key: Transformer(config, key))(jax.random.key(3))


@jax.jit
def all_logits(model, tokens):
    return model.logits(model(tokens)[0].hidden)


def one_by_one(model, prompt, eos, count):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        if len(tokens) > len(prompt) and tokens[-1] == eos:
            tokens.append(eos)
            continue
        padded = np.zeros((1, 16), np.int32)  # of one width, which is compiled once: no token sees what comes after it
        padded[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(all_logits(model, padded)[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


def test_rows_of_different_lengths(model):
    prompts = [[5, 6, 7, 8], [9], [10, 11, 300]]
    padded = np.full((3, 6), 1, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    out = greedy(model, padded, np.array([4, 1, 3], np.int32), -1, 5)
    for row, prompt in zip(np.asarray(out), prompts, strict=True):
        assert row.tolist() == one_by_one(model, prompt, -1, 5)


def test_stops_at_eos(model):
    prompt = np.array([[5, 6, 7]], np.int32)
    free = np.asarray(greedy(model, prompt, np.array([3]), -1, 6))[0].tolist()
    eos = free[2]
    stopped = np.asarray(greedy(model, prompt, np.array([3]), eos, 6))[0].tolist()
    first = free.index(eos)
    assert stopped == free[: first + 1] + [eos] * (5 - first)


def test_accuracy_counts_right_answers(model, tokenizer, monkeypatch):
    task = Arithmetic()
    problems = task.problems("validation", 10)
    solutions = iter([p.solution if i % 5 else "#### 0" for i, p in enumerate(problems)])

    def answer(_, prompts, lengths, eos, count):
        out = np.full((len(prompts), count), eos, np.int32)
        for row, length in zip(out, lengths, strict=True):
            if length > 1:  # not a row that only fills the batch
                ids = tokenizer(next(solutions))["input_ids"]
                row[: len(ids)] = ids
        return out

    monkeypatch.setattr(module, "greedy", answer)
    assert accuracy(model, tokenizer, task, problems, max_new_tokens=300, batch_size=4) == 0.8

"""Other label sources against hand-made ones, on a tiny pair."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_pairs import forced, greedy_by_hand, text_pair, with_parameters
from toy_task import LetterParity
from transcription import softmax

from kljudge_jax.errors import InputError
from kljudge_jax.judges.sources import Likelihood, Rollouts, label_marked_answers, label_mismatches

TASK, NEW = LetterParity(), 10


@pytest.fixture(scope="module")
def pair():
    return text_pair(noise=0.25)


def log_probabilities(pair, tokens):
    logits = np.float64(forced(pair.target, tokens)[0])
    return np.array([0] + [np.log(softmax(logits[i - 1])[tokens[i]]) for i in range(1, len(tokens))])


def test_marked_answers(pair, tmp_path):
    lines = [
        {"prompt": "abc", "answer": "de é f", "wrong_from": None},
        {"prompt": "xyz", "answer": "hi", "wrong_from": 0},
        {"prompt": "abc", "answer": "gé€h", "wrong_from": 2},
    ]
    (tmp_path / "marked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    seen = []
    found = label_marked_answers(
        pair, tmp_path / "marked.jsonl", tmp_path / "data", progress=lambda now: seen.append((now.done, now.total))
    )
    assert seen == [(1, 2), (2, 2)] and found.origin["labels"] == "judge-decoding"
    right, wrong = pair.tokenizer("de é f")["input_ids"], pair.tokenizer("gé€h")["input_ids"]
    assert found["question"].tolist() == [0] * (len(right) + len(wrong)) + [1, 1]
    assert found["important"].tolist() == [0] * len(right) + [0] * 3 + [1] * 4 + [1, 1]  # g is a byte, é two, € three
    whole = [*pair.tokenizer("abc")["input_ids"], *right]
    (logits, states), (_, draft_states) = forced(pair.target, whole), forced(pair.draft, whole)
    for i, token in enumerate(right):
        assert (found["draft_token"][i], found["target_token"][i]) == (token, logits[i + 2].argmax())
        np.testing.assert_allclose(found["target_hidden"][i], states[i + 3], atol=2e-5)
        np.testing.assert_allclose(found["draft_hidden"][i], draft_states[i + 3], atol=2e-5)


def test_likelihoods(pair, tmp_path):
    found = label_mismatches(pair, TASK, tmp_path, Likelihood(NEW, threshold=2.0, window=3), n=3)
    row = 0
    for i, problem in enumerate(TASK.problems(n=3)):
        prompt = pair.tokenizer(problem.prompt)["input_ids"]
        text = [*prompt, *greedy_by_hand(pair.target, prompt, NEW)]
        choices = forced(pair.draft, text)[0].argmax(-1)
        for at in range(len(prompt), len(text)):
            if choices[at - 1] == text[at]:
                continue
            other = [*text[:at], int(choices[at - 1]), *text[at + 1 :]]
            cost = (log_probabilities(pair, text) - log_probabilities(pair, other))[at : at + 4].sum()
            assert (found["question"][row], found["position"][row]) == (i, at - len(prompt))
            assert (found["target_token"][row], found["draft_token"][row]) == (text[at], other[at])
            assert found["score"][row] == pytest.approx(cost, abs=1e-3)
            assert found["important"][row] == (cost > 2)
            np.testing.assert_allclose(found["target_hidden"][row], forced(pair.target, other)[1][at], atol=2e-5)
            row += 1
    assert row == len(found) > 3 and 0 < found["important"].sum() < row
    assert found.relabelled(-1e9)["important"].all()


def test_rollouts(pair, tmp_path):
    by = Rollouts(NEW, rollouts=4, temperature=1.0, threshold=0.25)
    found = label_mismatches(pair, TASK, tmp_path, by, n=2)
    assert len(found) and set(found["score"].tolist()) <= {0, 0.25, 0.5, 0.75, 1.0} and len(set(found["score"])) > 1
    np.testing.assert_array_equal(found["important"], found["score"] > 0.25)
    again = label_mismatches(pair, TASK, tmp_path, by, n=2)
    np.testing.assert_array_equal(again["score"], found["score"])


@pytest.mark.parametrize(
    "record, says",
    [
        ({"prompt": "a", "answer": "b"}, "line 1: object missing required field wrong_from"),
        ({"prompt": "a", "answer": "b", "wrong_from": 1}, "a character of the answer"),
        ({"prompt": "a", "answer": "", "wrong_from": None}, "is empty"),
    ],
)
def test_marked_answers_that_cannot_be_used_are_refused(pair, tmp_path, record, says):
    (tmp_path / "marked.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError, match=says):
        label_marked_answers(pair, tmp_path / "marked.jsonl", tmp_path / "data")


def test_a_model_without_numbers_yields_no_labels(tmp_path):
    pair = text_pair()
    broken = dataclasses.replace(
        pair, draft=with_parameters(pair.draft, lambda name, x: x * np.nan if name == "final_norm.scale" else x)
    )
    found = label_mismatches(broken, LetterParity(), tmp_path, Likelihood(8), n=2)
    assert len(found) == 0 and [record.status for record in found.questions] == ["failed", "failed"]

"""Where a pair disagrees, against the definition written out token by token."""

import numpy as np
import pytest
from tiny_pairs import forced, text_pair

import kljudge_jax as kj
from kljudge_jax.tasks.base import Problem
from kljudge_jax.training import agreement
from kljudge_jax.training.agreement import KINDS, measure_agreement, token_kinds

PROBLEMS = [Problem(str(i), prompt, "") for i, prompt in enumerate(["abc", "fig", "a cab"])]


@pytest.fixture(scope="module")
def pair():
    return text_pair()


def test_counts_are_those_of_the_definition(pair, monkeypatch):
    monkeypatch.setattr(agreement, "_BATCH", 2)  # the second batch is not full
    found = measure_agreement(pair, PROBLEMS, max_new_tokens=24)
    kinds = token_kinds(pair)
    tokens, mismatched, unsure, kl = ({name: [] for name in KINDS} for _ in range(4))
    for problem in PROBLEMS:
        prompt = pair.tokenizer(problem.prompt)["input_ids"]
        answer = kj.generate(pair, problem.prompt, verifier=None, max_new_tokens=24).tokens[0].tolist()
        p, q = (forced(model, prompt + answer)[0].astype(np.float64) for model in (pair.target, pair.draft))
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        for place, token in enumerate(answer, len(prompt)):
            name = KINDS[kinds[token]]
            missed = q[place - 1].argmax() != token
            tokens[name].append(1)
            mismatched[name].append(missed)
            unsure[name].append(missed and np.exp(p[place - 1].max()) <= 0.9)
            if missed:
                kl[name].append((np.exp(p[place - 1]) * (p[place - 1] - q[place - 1])).sum())
    assert found.tokens == {name: sum(of) for name, of in tokens.items()}
    assert found.mismatched == {name: sum(of) for name, of in mismatched.items()}
    assert sum(found.mismatched.values()) > 3, "a pair that agrees shows nothing"
    assert found.unsure == {name: sum(of) for name, of in unsure.items()}
    for name, of in kl.items():
        if of:
            assert found.median_kl[name] == pytest.approx(np.median(of), rel=1e-3)
        else:
            assert found.median_kl[name] is None


def test_kinds_of_tokens(pair):
    kinds = token_kinds(pair)

    def kind(text):
        (token,) = pair.tokenizer(text, add_special_tokens=False)["input_ids"]
        return KINDS[kinds[token]]

    assert [kind(text) for text in ("a", "7", "+", " ")] == ["word", "digit", "other", "other"]

"""The answers of 0.1.0, which judged the first token too, are those of `first=0`."""

import json
from pathlib import Path

import numpy as np
import pytest

import kljudge_jax as kj

GOLDEN = Path(__file__).parents[1] / "files_of_0_1_0" / "sweep" / "answers.jsonl"


@pytest.fixture(scope="module")
def pair():
    return kj.ModelPair.embedded(dtype="float32")


def golden(rule):
    lines = map(json.loads, GOLDEN.read_text().splitlines())
    return {line["problem"]: line for line in lines if line["rule"] == rule}


def answers(pair, rule):
    problems = kj.load_task("arithmetic").problems(split="test", n=4, seed=0)
    asked = {"draft_length": 8, "max_new_tokens": 48}
    out = kj.generate(pair, [problem.prompt for problem in problems], verifier=rule, **asked)
    return {
        problem.id: (tokens, origin) for problem, tokens, origin in zip(problems, out.tokens, out.origin, strict=True)
    }


def test_without_a_strict_first_token_answers_are_those_of_0_1_0(pair):
    found, expected = answers(pair, "kl:0.4,first=0"), golden("kl:0.4")
    assert found.keys() == expected.keys()
    for problem, (tokens, origin) in found.items():
        np.testing.assert_array_equal(tokens, expected[problem]["token_ids"])
        assert "".join(each[0] for each in origin) == expected[problem]["origin"]
        assert origin[0] == "relaxed"


def test_the_first_token_is_the_targets_own(pair):
    plain = golden("exact")
    for spec in ("kl:0.4", "secure:kl:0.4,first=0,first=1", "judge:embedded,threshold=0.9"):
        for problem, (tokens, origin) in answers(pair, spec).items():
            assert tokens[0] == plain[problem]["token_ids"][0] and origin[0] != "relaxed", spec
            assert "relaxed" in list(origin[1:]), spec

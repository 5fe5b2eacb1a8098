"""The example of three divergences: the list it makes, rules that differ in the divergence alone, its table."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from random_cases import expected_lengths, random_cases

import kljudge_jax as kj
from kljudge_jax.verification.rule import RULES

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "partial_support.py"


@pytest.fixture(scope="module")
def example():
    known = list(RULES)
    spec = importlib.util.spec_from_file_location("partial_support", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of a class
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    RULES[:] = known


def test_the_rules_are_exact_below_zero_and_the_mask_alone_without_a_bound(example):
    inputs = random_cases(3, True, kinds=("close", "far", "sharp"))
    strict = expected_lengths(kj.GreedyExact(), inputs)
    most = expected_lengths(kj.KLJudge(1e30), inputs)
    for rule in example.RULES.values():
        np.testing.assert_allclose(expected_lengths(rule(-1.0), inputs), strict)
        np.testing.assert_allclose(expected_lengths(rule(1e30), inputs), most)
    middle = [expected_lengths(rule(0.1), inputs) for rule in example.RULES.values()]
    assert all((x >= strict - 1e-6).all() and (x <= most + 1e-6).all() for x in middle)
    assert not np.allclose(middle[0], middle[1]) and not np.allclose(middle[1], middle[2])


@pytest.mark.slow
def test_a_run_of_two_problems(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "THRESHOLDS", {name: values[-1:] for name, values in example.THRESHOLDS.items()})
    pair = kj.ModelPair.embedded()
    ids, share = example.half_of_the_tokens(pair, problems=200)
    assert 80 < len(ids) < 160 and 0.9 < share < 1 and set(pair.eos) <= set(ids)
    found = example.answers(pair.with_draft_vocab(ids), "arithmetic", 2, tmp_path / "answers", batch=2)
    assert [len(records) for records in found.values()] == [2] * 5
    assert [record.text for record in found["none"]] == [record.text for record in found["exact"]]
    lines = example.table(found).splitlines()
    assert len(lines) == 7 and all("of 2 |" in line for line in lines[2:])

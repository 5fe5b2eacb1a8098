"""Every rule is its definition, greedy and sampling, and the page of definitions says what was found."""

import dataclasses

import jax
import msgspec
import numpy as np
import pytest
from agreement import BATCH, MARKS, SHAPES, Agreement, Tally, compare, label, measure, on_page, table, tallied
from documentation import PAGES, SITE
from oracles import ORACLES
from oracles.base import RESOLUTION, token_by_token
from oracles.cases import cases_of
from random_cases import LENGTH, SIZE, VOCAB, as_inputs, verdicts

from kljudge_jax.records import read
from kljudge_jax.verification import Lenience, SpeculativeSampling, describe_rules
from kljudge_jax.verification.rule import RULES

RUNS = [(oracle, mode) for oracle in ORACLES for mode in oracle.modes]

# Other tests may have registered rules.
OURS = [rule for rule in RULES if rule.__module__.startswith("kljudge_jax.")]


def runs():
    """Every oracle in every mode; slow where a rule that is given the same is compiled anew: it is most of the time."""
    programs = {}
    for oracle in ORACLES:
        structure = jax.tree.structure(oracle.rule)
        first = programs.setdefault((type(oracle.rule), oracle.reads), structure)
        marks = () if structure == first else (pytest.mark.slow,)
        for mode in oracle.modes:
            yield pytest.param(oracle, mode, marks=marks, id=f"{label(oracle.rule)} {mode}")


def of(rule):
    return next(oracle for oracle in ORACLES if type(oracle.rule) is type(rule) and oracle.rule == rule)


def check(oracle, mode, shape, size):
    found, _, difference = compare(oracle, mode, shape, size, seed=1)
    assert not found.differ, difference
    assert found.cases == size == found.agree + found.undecided and found.undecided < size / 10


@pytest.mark.parametrize(("oracle", "mode"), list(runs()))
def test_a_rule_is_its_definition(oracle, mode):
    # One shape and size for most tests: the rules are compiled for it anyway.
    check(oracle, mode, (LENGTH, VOCAB), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (LENGTH, VOCAB)], ids=str)
@pytest.mark.parametrize(("oracle", "mode"), RUNS, ids=[f"{label(oracle.rule)} {mode}" for oracle, mode in RUNS])
def test_a_rule_is_its_definition_at_other_sizes(oracle, mode, shape):
    check(oracle, mode, shape, BATCH)


def test_every_rule_has_a_definition():
    assert {type(oracle.rule) for oracle in ORACLES} == set(OURS)
    for rule in OURS:
        modes = {mode for oracle in ORACLES if type(oracle.rule) is rule for mode in oracle.modes}
        assert modes == ({"greedy"} if rule.greedy_only else {"greedy", "sampling"})


def test_the_page_is_what_was_found_of_every_rule():
    found = read(SITE / "pages" / "definitions.json", Agreement)
    assert on_page(PAGES["definitions"], found) == PAGES["definitions"]
    described = {row["name"]: row for row in describe_rules()}
    for rule, row in zip(sorted(OURS, key=lambda rule: (rule.spec_name, rule.__name__)), found.rules, strict=True):
        assert (row.spec, row.name) == (rule.spec_name, rule.__name__)
        said = (described[row.name][key] for key in ("ours", "ours_with"))
        assert row.ours == "; ".join(filter(None, said))
        settings = [label(oracle.rule) for oracle in ORACLES if type(oracle.rule) is rule]
        assert [each.rule for each in row.settings] == settings
        for mode in ("greedy", "sampling"):
            tally = row.total(mode)
            assert tally is None or (tally.cases == found.cases * len(row.settings) and tally.differ == 0)
        assert all(each.p is None or each.p > 1e-4 for each in row.settings)
        assert not (row.lossless and row.lossless.largest_error > 1e-6)


def test_what_differs_is_found():
    """Another number, another correction."""
    strict, lenient = of(SpeculativeSampling()), of(Lenience(0.4))
    for wrong in (
        dataclasses.replace(lenient, rule=Lenience(0.41)),
        dataclasses.replace(strict, expected=token_by_token(lambda place: (place.strict, 1.0), lambda place: place.p)),
    ):
        found, _, difference = compare(wrong, "sampling", (LENGTH, VOCAB), SIZE, 1)
        assert found.differ > SIZE / 10 and difference


def test_draws_of_another_rule_are_found(monkeypatch):
    oracle = dataclasses.replace(of(SpeculativeSampling()), modes=("sampling",))
    size = 4 * SIZE
    found = measure(oracle, size, 0)
    assert found.sampling == Tally(cases=size, agree=size) and found.draws > size / 2 and found.p > 1e-4
    monkeypatch.setattr("agreement.verdicts", lambda rule, *rest: verdicts(Lenience(0.5), *rest))
    assert measure(oracle, size, 0).p < 1e-6


def test_a_case_near_a_threshold_is_undecided():
    oracle = of(Lenience(0.4))
    logits = np.full((SIZE, LENGTH + 1, VOCAB), [0.0, np.log(0.4), -5.0, -5.0, -5.0])
    tokens, drafts = np.ones((SIZE, LENGTH)), logits[:, :LENGTH]
    inputs = as_inputs(tokens, np.ones(SIZE), drafts, logits, drafts, logits, True)
    cases = cases_of(inputs)
    assert all(oracle.expected(case).slack < RESOLUTION for case in cases)
    assert tallied(oracle, inputs, cases)[0] == Tally(cases=SIZE, undecided=SIZE)


def test_a_page_gets_the_table_between_its_marks():
    found = read(SITE / "pages" / "definitions.json", Agreement)
    page = f"before\n{MARKS[0]}old{MARKS[1]}\nafter\n"
    assert on_page(page, found) == f"before\n{MARKS[0]}{table(found)}{MARKS[1]}\nafter\n"
    tally = Tally(cases=7, agree=4, undecided=2, differ=1)
    setting = msgspec.structs.replace(found.rules[0].settings[0], greedy=tally)
    row = msgspec.structs.replace(found.rules[0], settings=(setting,))
    assert "4 of 5 agree, 2 undecided" in table(msgspec.structs.replace(found, rules=(row,)))

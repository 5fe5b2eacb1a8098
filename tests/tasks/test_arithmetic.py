"""The word problems: right, short, and worded in many ways."""

import collections
import dataclasses
import re

import pytest

from kljudge_jax.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
PROBLEMS = TASK.problems("train", 2000)


def steps_of(problem):
    return re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", problem.solution)


def test_every_calculation_is_right_and_small():
    for problem in PROBLEMS:
        for left, sign, right, result in steps_of(problem):
            assert eval(f"{left}{sign}{right}") == int(result), problem
            assert 0 < int(result) <= 99 and int(left) <= 99


def test_two_to_five_steps_end_in_the_answer():
    counts = collections.Counter()
    for problem in PROBLEMS:
        steps = steps_of(problem)
        counts[len(steps)] += 1
        assert steps[-1][3] == problem.answer
        assert problem.solution.endswith(f"\n#### {problem.answer}")
        assert TASK.check(problem, problem.solution)
    assert set(counts) == {2, 3, 4, 5}
    assert min(counts.values()) > 20


def test_an_inventory_is_what_its_events_say():
    problem_facts = [TASK._draw("train", 7, i) for i in range(600)]
    for facts, problem in problem_facts:
        if facts[0] != "inventory":
            continue
        count = facts[1]
        for sign, n in facts[2:]:
            count = {"+": count + n, "-": count - n, "*": count * n}[sign]
        assert str(count) == problem.answer


def test_the_prompt_holds_every_number_the_solution_starts_from():
    for problem in PROBLEMS:
        known = set(re.findall(r"\d+", problem.prompt))
        for left, _, right, result in steps_of(problem):
            assert {left, right} <= known, problem
            known.add(result)


@pytest.mark.parametrize("family", ["inventory", "compare", "shopping", "groups"])
def test_one_problem_has_many_wordings(family):
    import random

    rng = random.Random(0)
    facts = next(facts for facts in iter(lambda: TASK.facts(rng), None) if facts[0] == family)
    wordings = [TASK.word(facts, rng) for _ in range(50)]
    assert len({solution for _, solution, _ in wordings}) > 45
    assert len({answer for _, _, answer in wordings}) == 1


def test_check_reads_the_last_line_only():
    problem = dataclasses.replace(PROBLEMS[0], answer="42")
    assert TASK.check(problem, "so 40+2=42.\n#### 42")
    assert TASK.check(problem, "#### 42 \n")
    assert not TASK.check(problem, "#### 41")
    assert not TASK.check(problem, "#### 42\nno, wait: #### 41")
    assert not TASK.check(problem, "the answer is 42")
    assert not TASK.check(problem, "")

"""Conversions and lists: right, and unlike the word problems."""

import collections
import random
import re

import pytest

from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.tasks.conversion import _FACT, Conversion, HardConversion

TASK, HARD = Conversion(), HardConversion()
DRAWN = [TASK._draw("train", 7, i) for i in range(2000)]
HARD_DRAWN = [HARD._draw("train", 7, i) for i in range(1000)]


def in_small_units(facts, amount):
    """The value of "3 h 20 min" in the small unit of the facts."""
    large, small = facts[1:3]
    worth = {large: _FACT[large, small], small: 1}
    return sum(int(n) * worth[unit] for n, unit in re.findall(r"(\d+) (\w+)", amount))


def test_every_calculation_is_right():
    for _, problem in DRAWN + HARD_DRAWN:
        for left, sign, right, result in re.findall(r"(\d+)([-+*])(\d+)=(\d+)", problem.solution):
            assert eval(f"{left}{sign}{right}") == int(result), problem


def test_answers_follow_from_the_prompt():
    seen = collections.Counter()
    for facts, problem in DRAWN + HARD_DRAWN:
        family = facts[0]
        seen[family] += 1
        numbers = [int(n) for n in re.findall(r"\d+", problem.prompt)]
        if family in ("range", "sort", "sum"):
            expected = {
                "range": str(max(numbers) - min(numbers)),
                "sort": ", ".join(map(str, sorted(numbers))),
                "sum": str(sum(numbers)),
            }[family]
            assert problem.answer == expected
        else:
            assert in_small_units(facts, problem.answer) == in_small_units(facts, problem.prompt)
        assert TASK.check(problem, problem.solution)
    assert set(seen) == {"down", "up", "total", "range", "sort", "sum"}


@pytest.mark.parametrize("family", ["down", "up", "total", "range", "sort", "sum"])
def test_one_problem_has_many_wordings(family):
    rng = random.Random(0)
    facts = next(facts for facts in iter(lambda: HARD.facts(rng), None) if facts[0] == family)
    wordings = [HARD.word(facts, rng) for _ in range(60)]
    assert len({solution for _, solution, _ in wordings}) > 30
    assert len({answer for _, _, answer in wordings}) == 1


def test_the_hard_one_is_the_same_but_harder():
    assert {facts[0] for facts, _ in HARD_DRAWN} - {facts[0] for facts, _ in DRAWN} == {"up"}
    listed = [[n for facts, _ in drawn if facts[0] == "sort" for n in facts[1:]] for drawn in (DRAWN, HARD_DRAWN)]
    assert max(listed[0]) == 9 < 50 < max(listed[1])
    assert HARD_DRAWN[0][1].id.startswith("conversion-hard/")


def test_the_two_domains_answer_in_different_styles():
    arithmetic = Arithmetic()
    for other, (_, problem) in zip(arithmetic.problems(n=50), DRAWN, strict=False):
        assert not arithmetic.check(problem, problem.solution)
        assert not TASK.check(other, other.solution)


def test_check_forgives_spaces_and_nothing_else():
    problem = next(problem for facts, problem in HARD_DRAWN if facts[0] == "up")
    many, large, rest, small = problem.answer.split()
    assert TASK.check(problem, f"- so\nAnswer:  {many}  {large} {rest} {small}\n")
    assert not TASK.check(problem, f"Answer: {many} {large}")
    assert not TASK.check(problem, f"Answer: {rest} {large} {many} {small}") or many == rest
    assert not TASK.check(problem, f"Answer: {problem.answer}\nAnswer: 1 {large}")

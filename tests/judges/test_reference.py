"""Same answers: numbers, boxes, and answers that can only pass or fail."""

import dataclasses

import pytest
from toy_task import LetterParity

from kljudge_jax.errors import InputError
from kljudge_jax.judges.reference import make_reference
from kljudge_jax.tasks import load_task
from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.math500 import Math500


def test_a_number_of_the_target_is_compared_with_even_if_wrong():
    task, problem = load_task("arithmetic"), Problem("a", "q", "12")
    right = make_reference(task, problem, "so\n#### 12", "target")
    assert right.same("x\n#### 12") and not right.same("x\n#### 13") and not right.same("x")
    wrong = make_reference(task, problem, "so\n#### 13", "target")
    assert wrong.same("x\n#### 13") and not wrong.same("x\n#### 12") and not wrong.same("#### 14")
    assert make_reference(task, problem, "never comes to it: 13", "target") is None


def test_the_gold_answer_leaves_out_what_is_wrong():
    task, problem = load_task("arithmetic"), Problem("a", "q", "12")
    assert make_reference(task, problem, "#### 13", "gold") is None
    assert make_reference(task, problem, "#### 12", "gold").same("#### 12")


def test_a_box_is_compared_as_the_task_compares_it():
    task, problem = Math500.__new__(Math500), Problem("a", "q", "x+1")
    wrong = make_reference(task, problem, r"\boxed{x + 2}", "target")
    assert wrong.same(r"so \boxed{x+2}") and not wrong.same(r"\boxed{x+1}")
    assert make_reference(task, problem, "cut off before any box", "target") is None


def test_what_only_passes_or_fails_is_compared_so():
    task, problem = LetterParity(), Problem("a", "q", "even")
    failed = make_reference(task, problem, "a", "target")
    assert failed.same("xa") and failed.same("abc") and not failed.same("x")


def test_a_task_without_answers_is_refused():
    with pytest.raises(InputError, match="no answers to check"):
        make_reference(LetterParity(), dataclasses.replace(Problem("a", "q", "")), "x", "target")

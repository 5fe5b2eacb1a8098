import json

import pytest

from kljudge_jax.tasks.math500 import Math500, same_latex


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\frac12", "\\frac{1}{2}"),
        ("0.5", "\\dfrac{1}{2}"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("1,-2", "-2, 1"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("1{,}000", "1000"),
        ("10,080", "10080"),
        ("x=5", "5"),
        ("5\\text{ cm}", "5"),
        ("\\text{Evelyn}", "Evelyn"),
        ("90^\\circ", "90"),
        ("10\\%", "10"),
        ("\\$36", "36"),
        ("2\\sqrt3", "2\\sqrt{3}."),
        ("x \\in [-2,7]", "[-2,7]"),
    ],
)
def test_same(one, other):
    assert same_latex(one, other) and same_latex(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "(2,1)"),
        ("[0,1)", "(0,1)"),
        ("1,2", "1,2,3"),
        ("1,2", "12"),
        ("\\frac{1}{2}", "\\frac{1}{3}"),
        ("\\text{Evelyn}", "\\text{Angela}"),
        ("5", "-5"),
        ("", "0"),
    ],
)
def test_different(one, other):
    assert not same_latex(one, other) and not same_latex(other, one)


def test_reads_and_checks(tmp_path):
    path = tmp_path / "test.jsonl"
    record = {"problem": "Half of 1?", "answer": "\\frac{1}{2}", "solution": "\\boxed{\\frac12}", "unique_id": "a/1"}
    path.write_text(json.dumps(record))
    task = Math500(path)
    (problem,) = task.problems("all", None)
    assert problem.id == "a/1" and "\\boxed{}" in problem.prompt[0]["content"]
    assert task.check(problem, "first \\boxed{3}, then \\boxed{0.5}")
    assert not task.check(problem, "\\boxed{\\frac{1}{3}}")
    assert not task.check(problem, "it is 0.5")

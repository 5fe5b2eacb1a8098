"""Final answers as models write them."""

from fractions import Fraction

import pytest

from kljudge_jax.tasks.answers import final_number, last_boxed, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9*2=18\n#### 18", 18),
        ("#### $1,234.\n", 1234),
        ("#### 5 eggs", 5),
        ("####72", 72),
        ("The final answer is $18 per day.", 18),
        ("The answer is 9 * 2 = $18 a day.", 18),
        ("Final Answer: **72**", 72),
        ("The final answer is: 1,000,000.", 1_000_000),
        ("so it is 7.\n\nAnswer: 7 apples, 3 each", 7),
        ("Thus \\boxed{1{,}000}", 1000),
        ("Thus the answer is \\(\\boxed{7}\\).", 7),
        ("\\boxed{\\$3.50}", Fraction(7, 2)),
        ("\\boxed{\\frac{3}{4}}", Fraction(3, 4)),
        ("#### 1. First\nadd 2\n#### 2. Then\nThe answer is 40.", 40),
        ("The answer is 12. No, wait: the answer is 13.", 13),
        ("#### 3\nSo the final answer is 4", 4),
        ("3-5 = -2, so the answer is \N{MINUS SIGN}2", -2),
        ("It grew by 50%.", 50),
        ("I count 3 and 5", 5),
        ("room 2b has 4.0", 4),
        ("the answer is 1/0", None),
        ("the answer is unknown", None),
        ("", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,234", 1234), (" $5 ", 5), ("-3", -3), ("3.50", Fraction(7, 2)), ("50%", 50), (".5", Fraction(1, 2))],
)
def test_parse_number(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "3 apples", "x", "1,23", "3-5", "1e3"])
def test_parse_number_takes_numbers_only(text):
    assert parse_number(text) is None


def test_last_boxed_balances_braces():
    assert last_boxed("\\boxed{1} then \\boxed{\\frac{1}{2}} end") == "\\frac{1}{2}"
    assert last_boxed("\\fbox{3}") == "3"
    assert last_boxed("\\boxed{\\frac{1}{2}") is None
    assert last_boxed("none") is None

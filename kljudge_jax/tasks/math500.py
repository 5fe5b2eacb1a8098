"""MATH-500: 500 competition problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874), answered in LaTeX."""

from __future__ import annotations

import os
import re
from fractions import Fraction

from kljudge_jax.records import Record
from kljudge_jax.tasks.answers import last_boxed, parse_number
from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.files import FileTask, ask, read_problems

_REQUEST = "{question}\n\nReason step by step, and put your final answer within \\boxed{{}}."
# Spacing and sizes, upright letters, units, degrees, currency and percent signs.
_DECORATION = re.compile(
    r"\\left|\\right|\\[!,;: ]|\\(?:mathrm|mathbf|textbf)(?=\{)|\\(?:text|mbox)\{[^{}]*\}|\^\{?\\circ\}?|\\?[$%]|[\s~]"
)


class Math500Record(Record, frozen=True, kw_only=True):
    """A line of the published file."""

    problem: str
    answer: str
    solution: str | None = None
    unique_id: str | None = None


class Math500(FileTask):
    """Reads `test.jsonl` of MATH-500 (`problem`, `answer`, and `solution` if it is there).

    Raises:
      InputError: the file cannot be read.
    """

    name = "math500"

    def __init__(self, path: str | os.PathLike, chat: bool = True):
        every = []
        for i, record in enumerate(read_problems(path, Math500Record)):
            question = record.problem.strip()
            prompt = ask(_REQUEST.format(question=question), chat)
            name = f"math500/{i}" if record.unique_id is None else record.unique_id
            every.append((question, Problem(name, prompt, record.answer, record.solution)))
        super().__init__(every)

    def check(self, problem: Problem, text: str) -> bool:
        """Whether the last `\\boxed{...}` holds the answer; see `same_latex`."""
        boxed = last_boxed(text)
        return boxed is not None and same_latex(boxed, problem.answer)


def same_latex(one: str, other: str) -> bool:
    """Whether two LaTeX answers are the same once spacing, units, `x =` and the way a number is written are left aside.

    Numbers are compared by value, pairs and intervals by element, other lists whatever their order. Algebra is not:
    `x + 1` and `1 + x` differ, so the share of right answers can come out low, hardly ever high.
    """
    one, other = _plain(one), _plain(other)
    if one == other:
        return True
    first, second = _elements(one), _elements(other)
    ordered = one[:1] in ("(", "[") or other[:1] in ("(", "[")
    if len(first) != len(second) or (len(first) > 1 and ordered and _brackets(one) != _brackets(other)):
        return False
    if not ordered:
        first, second = sorted(first, key=str), sorted(second, key=str)
    return first == second


def _plain(text: str) -> str:
    text = (
        text.replace("{,}", ",")
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
        .replace("\N{MINUS SIGN}", "-")
    )
    text = re.sub(r"^\s*\\(?:text|mbox)\{([^{}]*)\}[\s.]*$", r"\1", text)  # the answer is a word, not a unit
    text = _DECORATION.sub("", text).rstrip(".")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", text)
    return re.sub(r"^[A-Za-z](?:\\in|=)", "", text)


def _brackets(text: str) -> str:
    return text[:1] + text[-1:]


def _elements(text: str) -> list[Fraction | str]:
    """The elements of "1,2", "(1,2)" or "\\{1,2\\}", numbers by value; a comma between thousands separates nothing."""
    whole = _value(text)
    if whole is not None:
        return [whole]
    inside = re.fullmatch(r"(?:\\\{|[(\[])(.*?)(?:\\\}|[)\]])", text)
    text = inside[1] if inside and "," in text else text
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    values = [_value(part) for part in parts]
    return [part if value is None else value for part, value in zip(parts, values, strict=True)]


def _value(text: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    if fraction is None:
        return parse_number(text)
    sign, above, below = fraction[1], int(fraction[2]), int(fraction[3])
    return Fraction(-above if sign else above, below) if below else None

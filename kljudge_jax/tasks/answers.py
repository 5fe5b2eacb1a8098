"""Reads a final answer out of what a model wrote."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"(?<![\w.])-?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?|(?<![\w.])-?\$?\.\d+"
# `####` is also a Markdown heading ("#### 1. First step"): it announces an answer only where little follows the number.
_HEADED = re.compile(rf"####\s*({_NUMBER})[^\n\d]{{0,30}}$", re.MULTILINE)
_SAID = re.compile(r"\banswer(?:\s+is|\s*[:=])(?=([^\n]*))", re.IGNORECASE)


def final_number(text: str) -> Fraction | None:
    """The number a solution ends in.

    It is announced by `#### n`, by `\\boxed{n}` or by "(the final) answer is n" or "answer: n"; the last announcement
    counts. Without one it is the last number of the text. Thousands separators, currency, percent signs, units, bold
    type and a full stop are left aside.

    Returns:
      None if there is no number at all.
    """
    for written, meant in ("\N{MINUS SIGN}", "-"), ("\\$", "$"), ("{,}", ","), ("\\!", ""), ("*", ""):
        text = text.replace(written, meant)
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    announced = [(found.start(), found[1]) for found in _HEADED.finditer(text)]
    announced += [(start, _result_of(inside)) for start, inside in _boxes(text)]
    announced += [(found.start(), _result_of(found[1])) for found in _SAID.finditer(text)]
    announced = [(start, number) for start, number in announced if number is not None]
    if announced:
        return _parse(max(announced)[1])
    numbers = re.findall(_NUMBER, text)
    return _parse(numbers[-1]) if numbers else None


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` (or `\\fbox{...}`) holds, braces balanced; None if there is none."""
    boxes = _boxes(text)
    return boxes[-1][1] if boxes else None


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number, with its separators, currency or percent sign; None if it is not."""
    text = text.strip().replace("\N{MINUS SIGN}", "-").rstrip(".%").strip()
    return _parse(text) if re.fullmatch(_NUMBER, text) else None


def _result_of(text: str) -> str | None:
    """The first number, or of a calculation ("9 * 2 = $18 a day") the first after the last `=`."""
    found = re.search(_NUMBER, text.rsplit("=", 1)[-1]) or re.search(_NUMBER, text)
    return found[0] if found else None


def _parse(number: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"[$,\s]", "", number))
    except ZeroDivisionError:
        return None


def _boxes(text: str) -> list[tuple[int, str]]:
    boxes = []
    for found in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            boxes.append((found.start(), text[found.end() : end - 1]))
    return boxes

"""Unit conversions and lists: short notes in, bullet points out, `Answer:` last. A domain unlike `arithmetic`."""

from __future__ import annotations

import random
import re
from typing import ClassVar

from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.generated import GeneratedTask

# Large unit, small unit, how many of the small make one large, the most of the large that a problem uses.
_UNITS = (
    ("h", "min", 60, 9),
    ("min", "sec", 60, 9),
    ("day", "h", 24, 4),
    ("week", "day", 7, 9),
    ("ft", "in", 12, 9),
    ("yd", "ft", 3, 9),
    ("m", "cm", 100, 9),
    ("cm", "mm", 10, 9),
    ("gal", "qt", 4, 9),
    ("lb", "oz", 16, 5),
)
_FACT = {unit[:2]: unit[2] for unit in _UNITS}
_MOST = {unit[:2]: unit[3] for unit in _UNITS}

_RULE = (
    "1 {U} is {f} {u}",
    "each {U} has {f} {u}",
    "{f} {u} fit in 1 {U}",
    "rule: {f} {u} per {U}",
    "a {U} means {f} {u}",
)
_TIMES = ("that is {calc} {u}", "multiply: {calc}", "whole {U}: {calc}", "in {u} it makes {calc}", "scale up: {calc}")
_PLUS = ("plus this: {calc}", "add: {calc}", "with the other part: {calc}", "sum so far: {calc}", "join: {calc}")
_MINUS = ("rest: {calc}", "take off: {calc}", "still over: {calc}", "what remains: {calc}", "difference: {calc}")
_EACH = ("item {i}: {calc}", "no. {i} gives {calc}", "{calc} for item {i}", "entry {i} is {calc}", "take {i}: {calc}")
_BULLETS = ("-", "*", ">")
_OPENINGS = ("now ", "then ", "next ", "so ", "")
_ENDINGS = ("done", "finished", "all in all", "end of list", "ready")
_LARGEST = ("largest: {n}", "top value: {n}", "the maximum is {n}", "biggest one: {n}", "at the top: {n}")
_MIDDLE = ("between: {n}", "in the middle: {n}", "left over: {n}", "not yet used: {n}", "the other one is {n}")
_SMALLEST = ("smallest: {n}", "low value: {n}", "the minimum is {n}", "least one: {n}", "at the bottom: {n}")


class Conversion(GeneratedTask):
    """Five families: to the small unit, a total in the small unit; a list's sum, range and order."""

    name = "conversion"
    _families: ClassVar[dict[str, int]] = {"down": 30, "total": 30, "range": 12, "sort": 13, "sum": 15}
    _most_listed = 9  # of lists that are compared
    _more_items: tuple[int, ...] = (1,)  # of a total, after the first

    def facts(self, rng: random.Random) -> tuple:
        family = rng.choices(tuple(self._families), tuple(self._families.values()))[0]
        if family in ("range", "sort", "sum"):
            most = 30 if family == "sum" else self._most_listed
            return family, *rng.sample(range(2, most + 1), 3 if family == "sort" else rng.choice((2, 3)))
        large, small, factor, most = rng.choice(_UNITS)
        if family == "total":
            amounts = [(rng.randint(1, min(most, 4)), 0)]
            for _ in range(rng.choice(self._more_items)):
                amounts.append(self._amount(rng, factor, min(most, 4)))
            rng.shuffle(amounts)
            return family, large, small, *amounts
        most = min(most, 4) if family == "up" else most  # the quotient has to be guessed
        return family, large, small, rng.randint(1, most), rng.randint(1, min(factor - 1, 30))

    @staticmethod
    def _amount(rng, factor, most):
        """(large, small), one of them 0."""
        return (rng.randint(1, most), 0) if rng.random() < 0.6 else (0, rng.randint(2, min(factor - 1, 30)))

    def word(self, facts: tuple, rng: random.Random) -> tuple[str, str, str]:
        prompt, lines, answer = getattr(self, f"_{facts[0]}_words")(facts[1:], rng)
        listed = "".join(f"{rng.choice(_BULLETS)} {rng.choice(_OPENINGS)}{line}\n" for line in lines)
        return f"{prompt}\n", f"{listed}{rng.choice(_BULLETS)} {rng.choice(_ENDINGS)}\nAnswer: {answer}", answer

    def check(self, problem: Problem, text: str) -> bool:
        """Whether what stands after `Answer:` is the answer, spaces aside."""
        found = re.search(r"Answer:([^\n]*)\s*$", text.strip())
        return found is not None and found[1].split() == problem.answer.split()

    def _down_words(self, facts, rng):
        large, small, many, rest = facts
        factor = _FACT[large, small]
        asked = rng.choice(("{x} = ? {u}", "convert {x} to {u}", "{x} in {u}", "change to {u}: {x}", "{u} in {x}?"))
        lines = [
            rng.choice(_RULE).format(U=large, u=small, f=factor),
            rng.choice(_TIMES).format(calc=f"{many}*{factor}={many * factor}", U=large, u=small),
            rng.choice(_PLUS).format(calc=f"{many * factor}+{rest}={many * factor + rest}"),
        ]
        prompt = asked.format(x=f"{many} {large} {rest} {small}", u=small)
        return prompt, lines, f"{many * factor + rest} {small}"

    def _up_words(self, facts, rng):
        large, small, many, rest = facts
        factor = _FACT[large, small]
        given = many * factor + rest
        asked = ("{x} = ? {U} + ? {u}", "convert {x} to {U} + {u}", "{x} in {U} + {u}", "change to {U} + {u}: {x}")
        lines = [
            rng.choice(_RULE).format(U=large, u=small, f=factor),
            rng.choice(_TIMES).format(calc=f"{many}*{factor}={many * factor}", U=large, u=small),
            rng.choice(_MINUS).format(calc=f"{given}-{many * factor}={rest}"),
        ]
        prompt = rng.choice(asked).format(x=f"{given} {small}", U=large, u=small)
        return prompt, lines, f"{many} {large} {rest} {small}"

    def _total_words(self, facts, rng):
        large, small, *amounts = facts
        factor = _FACT[large, small]
        asked = rng.choice(("total in {u}: {x}", "add up ({u}): {x}", "sum of {x} in {u}", "{x} = ? {u} in all"))
        given = ", ".join(f"{many} {large}" if many else f"{rest} {small}" for many, rest in amounts)
        lines, values = [rng.choice(_RULE).format(U=large, u=small, f=factor)], []
        for i, (many, rest) in enumerate(amounts):
            values.append(many * factor + rest)
            calc = f"{many}*{factor}={values[-1]}" if many else str(rest)
            lines.append(rng.choice(_EACH).format(i=i + 1, calc=calc))
        return asked.format(x=given, u=small), lines + self._running_sum(values, rng), f"{sum(values)} {small}"

    def _sum_words(self, facts, rng):
        asked = rng.choice(("sum: {x}", "add up: {x}", "total of {x}", "list {x} -> sum"))
        return asked.format(x=", ".join(map(str, facts))), self._running_sum(facts, rng), str(sum(facts))

    def _range_words(self, facts, rng):
        asked = rng.choice(("range: {x}", "spread of {x}", "list {x} -> largest minus smallest", "gap in {x}"))
        high, low = max(facts), min(facts)
        lines = [
            rng.choice(_LARGEST).format(n=high),
            rng.choice(_SMALLEST).format(n=low),
            rng.choice(_MINUS).format(calc=f"{high}-{low}={high - low}"),
        ]
        return asked.format(x=", ".join(map(str, facts))), lines, str(high - low)

    def _sort_words(self, facts, rng):
        asked = rng.choice(("sort: {x}", "list {x} -> rising order", "put in order: {x}", "arrange {x}"))
        low, middle, high = sorted(facts)
        lines = [rng.choice(_SMALLEST).format(n=low), rng.choice(_LARGEST).format(n=high)]
        lines.append(rng.choice(_MIDDLE).format(n=middle))
        return asked.format(x=", ".join(map(str, facts))), lines, ", ".join(map(str, sorted(facts)))

    @staticmethod
    def _running_sum(values, rng):
        lines, total = [], values[0]
        for value in values[1:]:
            lines.append(rng.choice(_PLUS).format(calc=f"{total}+{value}={total + value}"))
            total += value
        return lines


class HardConversion(Conversion):
    """The same with longer numbers to compare, totals of three, and a sixth family: to the large unit."""

    name = "conversion-hard"
    stream = "conversion"
    _families: ClassVar[dict[str, int]] = {"down": 20, "up": 15, "total": 25, "range": 15, "sort": 10, "sum": 15}
    _most_listed = 60
    _more_items = (1, 1, 1, 2)


class MixedConversion(Conversion):
    """Conversions with totals of three, the stage of the target's training between the hard ones and the plain ones."""

    name = "conversion-mixed"
    stream = "conversion"
    _more_items = (1, 1, 1, 2)

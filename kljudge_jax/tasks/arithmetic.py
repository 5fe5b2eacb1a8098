"""Grade-school word problems of 2 to 5 steps: small numbers, many phrasings.

A model that has learned them is sure of the digits and unsure of the words, since every sentence is drawn from several
that mean the same: the setting judge decoding was made for.
"""

from __future__ import annotations

import random
import re

from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.generated import GeneratedTask

_NAMES = ("Tom", "Ana", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe", "Max", "Lily", "Omar", "Ruth")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "toys", "beads", "nuts", "balls")
_LARGEST = 99  # every number of a problem, and of its solution, has at most two digits

# Each step of an inventory, as the question tells it and as the solution repeats it.
_TOLD = {
    "+": (
        "{who} buys {n} more.",
        "Then {who} finds {n} more.",
        "Later {who} gets {n} more.",
        "A friend brings {n} more.",
        "{who} adds {n} more.",
    ),
    "-": (
        "{who} gives away {n}.",
        "Then {who} loses {n}.",
        "Later {who} sells {n}.",
        "{who} uses {n} of them.",
        "A friend takes {n} of them.",
    ),
    "*": (
        "Then the number grows to {n} times as many.",
        "Soon {who} has {n} times as many.",
        "After a week there are {n} times as many.",
    ),
}
_STEP = {
    "+": ("{who} gets {n} more", "we add {n}", "{n} more come in", "the number goes up by {n}", "there are {n} more"),
    "-": (
        "{who} loses {n}",
        "we take away {n}",
        "{n} of them go",
        "the number goes down by {n}",
        "there are {n} fewer",
    ),
    "*": ("it is {n} times as many", "we multiply by {n}", "the number grows {n} times", "there are {n} times as many"),
    "/": ("we share among {n}", "we divide by {n}", "it is split into {n} parts", "each of the {n} gets a part"),
}
_FIRST = ("First, ", "To start, ", "At first, ", "We begin: ", "In step one, ")
_NEXT = ("Then ", "Next, ", "After that, ", "Now ", "From there, ", "Later ")
_GIVES = (": ", ", so ", ", which gives ", ", and that makes ", ", that is ")
_LAST = (
    "So the answer is {n}.",
    "That makes {n} in the end.",
    "In total we get {n}.",
    "The result is {n}.",
    "So we have {n}.",
)


def _apply(sign: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]


class Arithmetic(GeneratedTask):
    """Four families: things that come and go, people compared, a bill, things in groups."""

    name = "arithmetic"

    def facts(self, rng: random.Random) -> tuple:
        family = rng.choices(("inventory", "compare", "shopping", "groups"), (4, 2, 2, 2))[0]
        return getattr(self, f"_{family}_facts")(rng)

    def word(self, facts: tuple, rng: random.Random) -> tuple[str, str, str]:
        question, steps = getattr(self, f"_{facts[0]}_words")(facts, rng)
        lines = []
        for i, (phrases, sign, left, right) in enumerate(steps):
            text = rng.choice(phrases).format(n=right)
            result = _apply(sign, left, right)
            opening = rng.choice(_NEXT if i else _FIRST)
            lines.append(f"{opening}{text}{rng.choice(_GIVES)}{left}{sign}{right}={result}.")
        lines.append(rng.choice(_LAST).format(n=result))
        return f"{question}\n", "\n".join(lines) + f"\n#### {result}", str(result)

    def check(self, problem: Problem, text: str) -> bool:
        """Whether the number after `####` is the answer."""
        found = re.search(r"####\s*(-?\d+)\s*$", text.strip())
        return found is not None and found[1] == problem.answer

    def _inventory_facts(self, rng):
        count = start = rng.randint(3, 30)
        events = []
        for _ in range(rng.choices((2, 3, 4, 5), (40, 40, 15, 5))[0]):
            sign = rng.choice("+" if count < 4 else "+-*" if count <= 20 else "+-" if count <= 80 else "-")
            n = rng.randint(2, {"+": 15, "-": min(15, count - 2), "*": 3}[sign])
            events.append((sign, n))
            count = _apply(sign, count, n)
        return ("inventory", start, *events)

    def _inventory_words(self, facts, rng):
        _, count, *events = facts
        who, thing = rng.choice(_NAMES), rng.choice(_THINGS)
        told = [rng.choice(("{who} has {n} {thing}.", "{who} starts with {n} {thing}.", "There are {n} {thing}."))]
        told[0] = told[0].format(who=who, n=count, thing=thing)
        steps = []
        for sign, n in events:
            told.append(rng.choice(_TOLD[sign]).format(who=who, n=n))
            steps.append(([phrase.replace("{who}", who) for phrase in _STEP[sign]], sign, count, n))
            count = _apply(sign, count, n)
        asked = rng.choice(("How many {thing} are there now?", "How many {thing} are left?", "How many in the end?"))
        return " ".join([*told, asked.format(thing=thing)]), steps

    def _compare_facts(self, rng):
        first = rng.randint(4, 25)
        counts, relations = [first], []
        for _ in range(rng.choices((1, 2), (60, 40))[0]):
            sign = rng.choice("+*" if counts[-1] < 4 else "+-*" if counts[-1] <= 12 else "+-")
            n = rng.randint(2, {"+": 12, "-": min(12, counts[-1] - 2), "*": 3}[sign])
            relations.append((sign, n))
            counts.append(_apply(sign, counts[-1], n))
        return ("compare", first, *relations) if sum(counts) <= _LARGEST else self._compare_facts(rng)

    def _compare_words(self, facts, rng):
        _, count, *relations = facts
        who, thing = rng.sample(_NAMES, len(relations) + 1), rng.choice(_THINGS)
        told, steps, total, totals = [f"{who[0]} has {count} {thing}."], [], count, []
        for i, (sign, n) in enumerate(relations):
            told.append(
                f"{who[i + 1]} has {n} {dict(zip('+-*', ('more', 'fewer', 'times as many'), strict=True))[sign]}"
                f" {'as' if sign == '*' else 'than'} {who[i]}."
            )
            phrases = ("we find {name}", "{name} comes next", "we look at {name}", "{name} is counted")
            steps.append(([phrase.replace("{name}", who[i + 1]) for phrase in phrases], sign, count, n))
            count = _apply(sign, count, n)
            totals.append((total, count))
            total += count
        joined = ("we put them together", "we add them up", "both go together", "we count them all")
        steps += [(joined, "+", left, right) for left, right in totals]
        asked = rng.choice(("How many do they have in all?", "How many are there together?", "What is the total?"))
        return " ".join([*told, asked]), steps

    def _shopping_facts(self, rng):
        items = [(rng.randint(2, 9), rng.randint(2, 9)) for _ in range(rng.choices((1, 2), (40, 60))[0])]
        total = sum(count * price for count, price in items)
        if total > 85:
            return self._shopping_facts(rng)
        paid = 0 if len(items) == 2 and rng.random() < 0.5 else rng.randint(total + 2, min(_LARGEST, total + 30))
        return ("shopping", *items, paid)

    def _shopping_words(self, facts, rng):
        _, *items, paid = facts
        who, things = rng.choice(_NAMES), rng.sample(_THINGS, len(items))
        bought = " and ".join(
            f"{count} {thing} at ${price} each" for (count, price), thing in zip(items, things, strict=True)
        )
        told = [rng.choice(("{who} buys {what}.", "{who} gets {what}.", "In a shop {who} takes {what}."))]
        told[0] = told[0].format(who=who, what=bought)
        steps = []
        for (count, price), thing in zip(items, things, strict=True):
            phrases = ("the {t} cost this", "we pay for the {t}", "we price the {t}", "the {t} are paid")
            steps.append(([phrase.format(t=thing) for phrase in phrases], "*", count, price))
        bill = [count * price for count, price in items]
        if len(bill) == 2:
            steps.append(
                (("we put both together", "we add them up", "the bill is this", "both go together"), "+", *bill)
            )
        if paid:
            told.append(
                rng.choice(("{who} pays with ${n}.", "{who} gives ${n}.", "{who} has ${n}.")).format(who=who, n=paid)
            )
            phrases = ("the rest is left", "we take it from {paid}", "we look at the change", "some money is left")
            steps.append(([phrase.format(paid=paid) for phrase in phrases], "-", paid, sum(bill)))
            asked = rng.choice(("How much is left?", "What is the change?", "How much money comes back?"))
        else:
            asked = rng.choice(("How much is it in all?", "What is the total?", "What does it cost together?"))
        return " ".join([*told, asked]), steps

    def _groups_facts(self, rng):
        groups, size = rng.randint(2, 9), rng.randint(2, 9)
        count, events = groups * size, []
        if rng.random() < 0.7:
            sign = rng.choice("+-")
            n = rng.randint(2, min(15, count - 2)) if count > 4 else 2
            events.append((sign, n))
            count = _apply(sign, count, n)
        shares = [k for k in range(2, 10) if count % k == 0 and 2 <= count // k <= 9]
        if not 2 <= count <= _LARGEST or not (events or shares):
            return self._groups_facts(rng)
        if shares and (not events or rng.random() < 0.6):
            events.append(("/", rng.choice(shares)))
        return ("groups", groups, size, *events)

    def _groups_words(self, facts, rng):
        _, groups, size, *events = facts
        who, thing = rng.choice(_NAMES), rng.choice(_THINGS)
        box = rng.choice(("bags", "boxes", "packs", "rows"))
        told = [rng.choice(("{who} has {g} {box} of {s} {thing}.", "There are {g} {box} with {s} {thing} each."))]
        told[0] = told[0].format(who=who, g=groups, s=size, box=box, thing=thing)
        phrases = ("we count the {b}", "all {b} go together", "we look at the {b}", "the {b} hold this many")
        steps = [([phrase.format(b=box) for phrase in phrases], "*", groups, size)]
        count = groups * size
        for sign, n in events:
            if sign == "/":
                told.append(rng.choice(("{n} friends share them.", "They are split among {n}.")).format(n=n))
            else:
                told.append(rng.choice(_TOLD[sign]).format(who=who, n=n))
            steps.append(([phrase.replace("{who}", who) for phrase in _STEP[sign]], sign, count, n))
            count = _apply(sign, count, n)
        shared = events[-1][0] == "/"
        asked = (
            ("How many does each get?", "How many for each?")
            if shared
            else ("How many are there now?", "How many in the end?")
        )
        return " ".join([*told, rng.choice(asked)]), steps

"""Tasks of our own: endless problems from a seed, in splits that cannot overlap."""

from __future__ import annotations

import abc
import hashlib
import random
from collections.abc import Hashable

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.base import SPLITS, Problem

# Of every 100 problems, by their hash: 0 to 69 train, 70 to 79 validation, 80 to 99 test.
_UPPER_BOUNDS = {"train": 70, "validation": 80, "test": 100}
_MOST_REPEATS = 200


def split_of(facts: Hashable) -> str:
    """The split a problem belongs to: a function of what it asks, never of how it is worded or when it was drawn."""
    bucket = int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=8).digest(), "big") % 100
    return next(split for split, bound in _UPPER_BOUNDS.items() if bucket < bound)


class GeneratedTask(abc.ABC):
    """Problems drawn in two moves: first the facts (what happens, with which numbers), then the words.

    The facts alone decide the split, so two wordings of one problem are never on both sides of it.
    """

    name: str
    stream: str = ""  # what seeds the draws, where that is not the name

    @abc.abstractmethod
    def facts(self, rng: random.Random) -> tuple:
        """What a problem asks, without its words: a tuple of strings and numbers."""

    @abc.abstractmethod
    def word(self, facts: tuple, rng: random.Random) -> tuple[str, str, str]:
        """Prompt, solution and answer of the given facts."""

    @abc.abstractmethod
    def check(self, problem: Problem, text: str) -> bool: ...

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """Problem `index` of a split's endless stream: a function of its arguments alone, so training can resume."""
        return self._draw(split, seed, index)[1]

    def problems(self, split: str = "test", n: int = 200, seed: int = 7) -> list[Problem]:
        """`n` problems, no two with the same facts.

        Raises:
          InputError: for an unknown split, or when the split does not hold `n` different problems.
        """
        if split not in SPLITS:
            raise InputError(f"{self.name} has no split {split!r}: choose one of {', '.join(SPLITS)}.")
        found: dict[tuple, Problem] = {}
        index = repeats = 0
        while len(found) < n:
            facts, problem = self._draw(split, seed, index)
            index += 1
            repeats = repeats + 1 if facts in found else 0
            if repeats > _MOST_REPEATS:
                raise InputError(
                    f"The {split} split of {self.name} holds about {len(found)} different problems: ask for fewer."
                )
            found.setdefault(facts, problem)
        return list(found.values())

    def _draw(self, split: str, seed: int, index: int) -> tuple[tuple, Problem]:
        rng = random.Random(f"{self.stream or self.name}/{split}/{seed}/{index}")
        facts = self.facts(rng)
        while split_of(facts) != split:
            facts = self.facts(rng)
        prompt, solution, answer = self.word(facts, rng)
        return facts, Problem(f"{self.name}/{split}/{seed}/{index}", prompt, answer, solution)

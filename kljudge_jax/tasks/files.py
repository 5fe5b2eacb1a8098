"""Tasks that are read from a file: JSON lines, plain or gzipped."""

from __future__ import annotations

import abc
import os
import random
from collections.abc import Sequence
from typing import TypeVar

from kljudge_jax import records
from kljudge_jax.errors import InputError
from kljudge_jax.tasks.base import SPLITS, Problem
from kljudge_jax.tasks.generated import split_of

T = TypeVar("T")

ADVICE = "give a local file as it was published"


def read_problems(path: str | os.PathLike, kind: type[T]) -> list[T]:
    """The records of a `.jsonl` or `.jsonl.gz` file.

    Raises:
      InputError: no such file, no record in it, or a line that is none; the message names line and field.
    """
    found = records.read_lines(str(path), kind, ADVICE)
    if not found:
        raise InputError(f"{path} holds no problem: give a file of JSON lines")
    return found


class FileTask(abc.ABC):
    """The problems of a file, in splits by a hash of the question: 70 % train, 10 % validation, 20 % test.

    The hash keeps what a threshold was chosen on apart from what it is judged on, even within one file; split "all" is
    the whole file, for published numbers.

    Args:
      every: each problem of the file with its question, bare of the instructions around it.
    """

    name: str

    def __init__(self, every: Sequence[tuple[str, Problem]]):
        self._every = [(split_of(question), problem) for question, problem in every]

    def problems(self, split: str = "test", n: int | None = 200, seed: int = 7) -> list[Problem]:
        """`n` problems of a split in an order that depends on the seed; all of them if `n` is None.

        Raises:
          InputError: for an unknown split, or when the split has fewer than `n` problems.
        """
        if split not in (*SPLITS, "all"):
            raise InputError(f"{self.name} has no split {split!r}: choose one of {', '.join(SPLITS)} or all.")
        held = [problem for own, problem in self._every if split in ("all", own)]
        if n is not None and n > len(held):
            raise InputError(f"Split {split!r} of {self.name} holds {len(held)} problems: ask for no more.")
        random.Random(seed).shuffle(held)
        return held[:n]

    @abc.abstractmethod
    def check(self, problem: Problem, text: str) -> bool: ...


def ask(question: str, chat: bool) -> str | list[dict[str, str]]:
    """A question as a chat of one turn, or as text to complete."""
    return [{"role": "user", "content": question}] if chat else f"{question}\n\n"

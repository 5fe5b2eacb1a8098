"""What a task is: prompts, and a checker that reads the final answer."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Attributes:
      id: unique within the task, the same in every run.
      prompt: text to complete, or a chat: a list of {"role", "content"}.
      answer: what a right answer comes to, as text; empty when nothing can be checked.
      solution: a worked solution that ends in the answer, to train on; None where the task has none.
    """

    id: str
    prompt: str | list[dict[str, str]]
    answer: str
    solution: str | None = None


@runtime_checkable
class Task(Protocol):
    """Prompts and a checker."""

    name: str

    def problems(self, split: str = "test", n: int = 200, seed: int = 7) -> list[Problem]:
        """`n` problems of a split, the same for the same seed. Raises `InputError` when there are fewer."""

    def check(self, problem: Problem, text: str) -> bool:
        """Whether `text`, which a model wrote after the prompt, comes to the problem's answer."""

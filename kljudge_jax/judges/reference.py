"""When two answers to a problem are the same: what a rollout is judged by."""

from __future__ import annotations

import dataclasses

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.answers import final_number, last_boxed, parse_number
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.tasks.math500 import Math500

KINDS = ("target", "gold")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What other answers to a problem are compared with.

    Attributes:
      task: reads answers.
      problem: its `answer` is the one to compare with.
      right: what the task has to say of an answer that is the same.
    """

    task: Task
    problem: Problem
    right: bool = True

    def same(self, text: str) -> bool:
        """Whether `text` comes to the same final answer."""
        return bool(self.task.check(self.problem, text)) == self.right


def make_reference(task: Task, problem: Problem, text: str, kind: str) -> Reference | None:
    """What the answers to `problem` are compared with, where the target itself wrote `text`.

    "target" is the final answer in `text`, right or wrong, as AutoJudge has it; where the task reads no such answer
    (code), an answer is the same if it passes the same check. "gold" is the problem's own answer.

    Returns:
      None where there is nothing to compare with: `text` has no final answer, or with "gold" is wrong already.

    Raises:
      InputError: the task cannot check answers.
    """
    if not problem.answer:
        raise InputError(f"{task.name} has no answers to check: choose a task that has")
    if task.check(problem, text):
        return Reference(task, problem)
    if kind == "gold":
        return None
    number = final_number(text)
    for own in (None if number is None else str(number), last_boxed(text)):
        # The task itself says whether this is how it reads the text.
        if own and task.check(dataclasses.replace(problem, answer=own), text):
            return Reference(task, dataclasses.replace(problem, answer=own))
    reads_answers = isinstance(task, Math500) or parse_number(problem.answer) is not None
    return None if reads_answers else Reference(task, problem, right=False)

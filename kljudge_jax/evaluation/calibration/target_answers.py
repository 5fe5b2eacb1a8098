"""A task whose right answers are the target's own: what agreement with the target is measured by."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from kljudge_jax.evaluation.sweep.records import AnswerRecord
from kljudge_jax.judges.reference import make_reference
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.tasks.code import CodeProblem


class TargetAnswers:
    """Asks the problems of a task, and calls right what comes to the final answer that plain decoding gave.

    Answers to a problem that a task can read are compared as `judges.reference` does; so right and wrong answers count
    alike. Plain prompts, code, and answers that end before a final answer are compared as text, but for spaces and the
    form of Unicode.

    Args:
      task: brings the problems, and the reader of final answers.
    """

    def __init__(self, task: Task):
        self.name = task.name
        self._task = task
        self._own: dict[str, str] = {}

    def problems(self, split: str = "test", n: int = 200, seed: int = 7) -> list[Problem]:
        return self._task.problems(split=split, n=n, seed=seed)

    def learn(self, records: Sequence[AnswerRecord]) -> None:
        """Takes the plain answers out of a sweep's records."""
        self._own |= {record.problem: record.text for record in records if record.rule == "none"}

    def check(self, problem: Problem, text: str) -> bool:
        """Whether `text` is the target's own answer; so is the first, when there is none to compare with yet."""
        own = self._own.get(problem.id)
        if own is None or _plain(own) == _plain(text):
            return True
        if not problem.answer or isinstance(problem, CodeProblem):
            return False
        reference = make_reference(self._task, problem, own, "target")
        return reference is not None and reference.same(text)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())

"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems written by people."""

from __future__ import annotations

import os
import re

from kljudge_jax.errors import InputError
from kljudge_jax.records import Record
from kljudge_jax.tasks.answers import final_number, parse_number
from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.files import FileTask, ask, read_problems

# The request of Qwen's model cards. Asked for short sentences instead, a small model answers briefly and errs more.
_REQUEST = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."


class GSM8KRecord(Record, frozen=True, kw_only=True):
    """A line of the published file."""

    question: str
    answer: str


class GSM8K(FileTask):
    """Reads the published `train.jsonl` or `test.jsonl` (`question`, `answer` that ends in `#### n`).

    Raises:
      InputError: the file cannot be read, or an answer has no number after `####`.
    """

    name = "gsm8k"

    def __init__(self, path: str | os.PathLike, chat: bool = True):
        every = []
        for i, record in enumerate(read_problems(path, GSM8KRecord)):
            solution, _, answer = record.answer.rpartition("####")
            if parse_number(answer) is None:
                raise InputError(f"Problem {i + 1} of {path} has no number after '####': give a file of GSM8K.")
            worked = re.sub(r"<<[^<>]*>>", "", solution).strip() + f"\n#### {answer.strip()}"
            question = record.question.strip()
            prompt = ask(_REQUEST.format(question=question), chat)
            every.append((question, Problem(f"gsm8k/{i}", prompt, answer.strip(), worked)))
        super().__init__(every)

    def check(self, problem: Problem, text: str) -> bool:
        """Whether the number `text` ends in (see `answers.final_number`) is the answer."""
        return final_number(text) == parse_number(problem.answer)

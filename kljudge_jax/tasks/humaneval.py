"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 Python functions to complete."""

from __future__ import annotations

import os

from kljudge_jax.records import Record
from kljudge_jax.tasks.code import CodeProblem, CodeTask
from kljudge_jax.tasks.files import ask, read_problems

_REQUEST = "Complete this Python function. Write the whole function in one code block.\n\n```python\n{code}\n```"


class HumanEvalRecord(Record, frozen=True, kw_only=True):
    """A line of the published file."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


class HumanEval(CodeTask):
    """Reads the published `HumanEval.jsonl.gz`, or the same unzipped.

    Raises:
      InputError: the file cannot be read.
    """

    name = "humaneval"

    def __init__(self, path: str | os.PathLike, chat: bool = True, run_code: bool = False):
        every = []
        for record in read_problems(path, HumanEvalRecord):
            header, function = record.prompt, record.entry_point
            problem = CodeProblem(
                id=record.task_id,
                prompt=ask(_REQUEST.format(code=header.strip()), chat) if chat else header,
                answer=function,
                solution=record.canonical_solution,
                header=header,
                function=function,
                tests=f"{record.test}\ncheck({function})",
            )
            every.append((header, problem))
        super().__init__(every, run_code)

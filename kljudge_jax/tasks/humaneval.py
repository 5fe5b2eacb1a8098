"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 Python functions to complete."""

from __future__ import annotations

import os

from kljudge_jax.tasks.code import CodeProblem, CodeTask
from kljudge_jax.tasks.files import ask, read_records

_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_REQUEST = "Complete this Python function. Write the whole function in one code block.\n\n```python\n{code}\n```"


class HumanEval(CodeTask):
    """Reads the published `HumanEval.jsonl.gz`, or the same unzipped.

    Raises:
      InputError: the file cannot be read.
    """

    name = "humaneval"

    def __init__(self, path: str | os.PathLike, chat: bool = True, run_code: bool = False):
        every = []
        for record in read_records(path, _FIELDS):
            header, function = record["prompt"], record["entry_point"]
            problem = CodeProblem(
                id=record["task_id"],
                prompt=ask(_REQUEST.format(code=header.strip()), chat) if chat else header,
                answer=function,
                solution=record["canonical_solution"],
                header=header,
                function=function,
                tests=f"{record['test']}\ncheck({function})",
            )
            every.append((header, problem))
        super().__init__(every, run_code)

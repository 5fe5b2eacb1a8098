"""MBPP (Austin et al. 2021, arXiv 2108.07732): short Python programs, each described in a sentence and by asserts."""

from __future__ import annotations

import os

from kljudge_jax.tasks.code import CodeProblem, CodeTask
from kljudge_jax.tasks.files import ask, read_records

_REQUEST = (
    "Write a Python function for this task, in one code block.\n\n{text}\n\n"
    "Your code should pass these tests:\n\n{tests}"
)


class MBPP(CodeTask):
    """Reads the published `mbpp.jsonl` (`text`, `code`, `test_list`, and `test_setup_code` if it is there).

    Raises:
      InputError: the file cannot be read.
    """

    name = "mbpp"

    def __init__(self, path: str | os.PathLike, chat: bool = True, run_code: bool = False):
        every = []
        for i, record in enumerate(read_records(path, ("text", "code", "test_list"))):
            tests = "\n".join(record["test_list"])
            problem = CodeProblem(
                id=f"mbpp/{record.get('task_id', i)}",
                prompt=ask(_REQUEST.format(text=record["text"].strip(), tests=tests), chat),
                answer=tests,
                solution=record["code"].replace("\r\n", "\n"),
                tests=f"{record.get('test_setup_code', '')}\n{tests}",
            )
            every.append((record["text"], problem))
        super().__init__(every, run_code)

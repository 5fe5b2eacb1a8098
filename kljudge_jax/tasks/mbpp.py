"""MBPP (Austin et al. 2021, arXiv 2108.07732): short Python programs, each described in a sentence and by asserts."""

from __future__ import annotations

import os

from kljudge_jax.records import Record
from kljudge_jax.tasks.code import CodeProblem, CodeTask
from kljudge_jax.tasks.files import ask, read_problems

_REQUEST = (
    "Write a Python function for this task, in one code block.\n\n{text}\n\n"
    "Your code should pass these tests:\n\n{tests}"
)


class MBPPRecord(Record, frozen=True, kw_only=True):
    """A line of the published file."""

    text: str
    code: str
    test_list: tuple[str, ...]
    test_setup_code: str = ""
    task_id: int | str | None = None


class MBPP(CodeTask):
    """Reads the published `mbpp.jsonl` (`text`, `code`, `test_list`, and `test_setup_code` if it is there).

    Raises:
      InputError: the file cannot be read.
    """

    name = "mbpp"

    def __init__(self, path: str | os.PathLike, chat: bool = True, run_code: bool = False):
        every = []
        for i, record in enumerate(read_problems(path, MBPPRecord)):
            tests = "\n".join(record.test_list)
            problem = CodeProblem(
                id=f"mbpp/{i if record.task_id is None else record.task_id}",
                prompt=ask(_REQUEST.format(text=record.text.strip(), tests=tests), chat),
                answer=tests,
                solution=record.code.replace("\r\n", "\n"),
                tests=f"{record.test_setup_code}\n{tests}",
            )
            every.append((record.text, problem))
        super().__init__(every, run_code)

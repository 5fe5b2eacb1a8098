"""What the two programming tasks share: problems with tests, and code cut out of what a model wrote."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.files import FileTask
from kljudge_jax.tasks.sandbox import check_sandbox, run_program

_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Where a model that completes a function has finished it and goes on with something else.
_AFTER_THE_FUNCTION = re.compile(r"^(?:class |def |if |print\(|assert |@|#|```)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class CodeProblem(Problem):
    """A problem whose answer is a program.

    Attributes:
      header: source that an answer may continue instead of writing it again (HumanEval's prompt).
      function: the name that the tests call; empty if only the tests know it.
      tests: source that raises unless the answer is right.
    """

    header: str = ""
    function: str = ""
    tests: str = ""


class CodeTask(FileTask):
    """A task whose check runs the answer. See `sandbox` for what confines it.

    Args:
      every: as in `FileTask`.
      run_code: allows it; without, problems can be read and `check` refuses.

    Raises:
      InputError: `run_code` on a system that cannot confine a process.
    """

    def __init__(self, every: Sequence[tuple[str, CodeProblem]], run_code: bool):
        if run_code:
            check_sandbox()
        super().__init__(every)
        self.run_code = run_code

    def check(self, problem: Problem, text: str) -> bool:
        """Whether the code in `text` passes the problem's tests. Raises `InputError` unless `run_code` was given."""
        if not self.run_code:
            raise InputError(f"Checking {self.name} runs model-written code: allow it with run_code=True (--run-code).")
        assert isinstance(problem, CodeProblem)
        return run_program(f"{code_of(problem, text)}\n\n{problem.tests}\n").passed


def code_of(problem: CodeProblem, text: str) -> str:
    """The program in an answer: its fenced blocks if there are any, else all of it.

    Text that does not define the problem's function continues `header`: up to where its next top-level statement
    starts.
    """
    blocks = _FENCED.findall(text)
    code = "\n\n".join(blocks) if blocks else text
    if not problem.header or re.search(rf"^def\s+{re.escape(problem.function)}\b", code, re.MULTILINE):
        # The header's imports serve an answer that repeats only the function.
        return f"{_imports(problem.header)}{code}"
    ended = _AFTER_THE_FUNCTION.search(code)
    return problem.header + (code[: ended.start()] if ended else code)


def _imports(source: str) -> str:
    return "".join(f"{line}\n" for line in source.splitlines() if re.match(r"(?:import|from)\s", line))

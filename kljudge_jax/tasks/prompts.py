"""Plain prompts of one's own: for timing, and for tasks that bring their answers along."""

from __future__ import annotations

import json
import os

from kljudge_jax.errors import InputError
from kljudge_jax.records import Record, read_text
from kljudge_jax.tasks.answers import final_number, parse_number
from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.files import ADVICE, FileTask, ask, read_problems


class Turn(Record, frozen=True, kw_only=True):
    """A turn of a chat."""

    role: str
    content: str


class PromptRecord(Record, frozen=True, kw_only=True):
    """A line of a `.jsonl` file of prompts: text, or a chat; and the answer, where there is one.

    Raises:
      ValueError: a prompt of no text, or of no turns.
    """

    prompt: str | tuple[Turn, ...]
    answer: str | int | float | bool | None = ""

    def __post_init__(self) -> None:
        if not (self.prompt.strip() if isinstance(self.prompt, str) else self.prompt):
            raise ValueError("prompt is empty: give text or a list of role and content")


class Prompts(FileTask):
    """Reads a `.jsonl` file (`prompt`: text or a chat; `answer` if there is one), or else a text file, a prompt a line.

    Raises:
      InputError: the file cannot be read, or a prompt is neither text nor a chat.
    """

    name = "prompts"

    def __init__(self, path: str | os.PathLike, chat: bool = False):
        if str(path).removesuffix(".gz").endswith(".jsonl"):
            records = read_problems(path, PromptRecord)
        else:
            records = [PromptRecord(prompt=line) for line in read_text(path, ADVICE).splitlines() if line.strip()]
        if not records:
            raise InputError(f"{path} holds no prompt: write one a line.")
        every = []
        for i, record in enumerate(records):
            prompt = record.prompt if isinstance(record.prompt, str) else [turn.to_dict() for turn in record.prompt]
            question = json.dumps(prompt)
            prompt = ask(prompt, chat=True) if chat and isinstance(prompt, str) else prompt
            every.append((question, Problem(f"prompts/{i}", prompt, str(record.answer))))
        super().__init__(every)

    def check(self, problem: Problem, text: str) -> bool:
        """Whether the number `text` ends in is the answer or, where the answer is no number, whether `text` holds it.

        Raises:
          InputError: the prompt came without an answer.
        """
        if not problem.answer:
            raise InputError(f"{problem.id} has no answer to check: add an 'answer' to each line of the file.")
        wanted = parse_number(problem.answer)
        return problem.answer in text if wanted is None else final_number(text) == wanted

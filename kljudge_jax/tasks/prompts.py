"""Plain prompts of one's own: for timing, and for tasks that bring their answers along."""

from __future__ import annotations

import json
import os

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.answers import final_number, parse_number
from kljudge_jax.tasks.base import Problem
from kljudge_jax.tasks.files import FileTask, ask, read_records, read_text


class Prompts(FileTask):
    """Reads a `.jsonl` file (`prompt`: text or a chat; `answer` if there is one), or else a text file, a prompt a line.

    Raises:
      InputError: the file cannot be read, or a prompt is neither text nor a chat.
    """

    name = "prompts"

    def __init__(self, path: str | os.PathLike, chat: bool = False):
        if str(path).removesuffix(".gz").endswith(".jsonl"):
            records = read_records(path, ("prompt",))
        else:
            records = [{"prompt": line} for line in read_text(path).splitlines() if line.strip()]
        if not records:
            raise InputError(f"{path} holds no prompt: write one a line.")
        every = []
        for i, record in enumerate(records):
            prompt = record["prompt"]
            if not _is_prompt(prompt):
                raise InputError(
                    f"Prompt {i + 1} of {path} is {json.dumps(prompt)[:60]}: give text or a list of role and content."
                )
            question = json.dumps(prompt)
            prompt = ask(prompt, chat=True) if chat and isinstance(prompt, str) else prompt
            every.append((question, Problem(f"prompts/{i}", prompt, str(record.get("answer", "")))))
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


def _is_prompt(prompt) -> bool:
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in prompt)
    )

"""What a draft is trained on: prompts with answers, as token ids, in a file of JSON lines that is appended to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import structs

from kljudge_jax.errors import InputError
from kljudge_jax.generation.generate import generate
from kljudge_jax.generation.prompts import tokenize
from kljudge_jax.models.fingerprint import fingerprint, same_model
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.records import Count, LineWriter, Record, differing, read, read_log, write
from kljudge_jax.tasks.base import Problem

# Prompts that are answered between two lines of the file: what a kill can lose.
_BLOCK = 32

_ADVICE = "delete it, and its answers are written again"


class CorpusLine(Record, frozen=True, kw_only=True):
    """A prompt with its answer.

    Attributes:
      id: of the problem.
      prompt, answer: token ids; the answer ends with an end-of-text token where it was finished.
    """

    id: str
    prompt: list[int]
    answer: list[int]


class CorpusHead(Record, frozen=True, kw_only=True):
    """How the target wrote the answers of a corpus (`corpus.json`, beside `corpus.jsonl`).

    Attributes:
      target: fingerprint of the model; of early versions' files, of its weights alone.
      eos: ids that end an answer.
      max_new_tokens: the most of an answer.
    """

    format: Literal["kljudge_jax.corpus"] = "kljudge_jax.corpus"
    version: Literal[1] = 1
    target: str
    eos: tuple[Count, ...]
    max_new_tokens: Count


def own_answers(
    pair: ModelPair,
    problems: Sequence[Problem],
    path: str | Path,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[CorpusLine]:
    """The target's own greedy answers, in the order of the problems.

    A second call with the same arguments goes on after the last line of the file.

    Args:
      pair: whose target answers.
      problems: what is asked.
      path: the file, `.jsonl`; a `.json` beside it says how the answers were written.
      max_new_tokens: the most of an answer.
      batch_size: how many are answered side by side.
      template_args: what the chat template is told beside the messages.
      report: told how many of how many answers there are.

    Raises:
      InputError: the file holds answers to other problems, or such as were written otherwise.
    """
    path = Path(path)
    head = CorpusHead(target=fingerprint(pair.target), eos=pair.eos, max_new_tokens=max_new_tokens)
    done = _done(path, pair, problems, template_args)
    _claim(path.with_suffix(".json"), head, bool(done))
    for first in range(len(done), len(problems), _BLOCK):
        block = problems[first : first + _BLOCK]
        out = generate(
            pair,
            [problem.prompt for problem in block],
            verifier=None,
            max_new_tokens=max_new_tokens,
            batch_size=min(batch_size, len(block)),
            template_args=template_args,
        )
        with LineWriter(path) as lines:
            for problem, tokens in zip(block, out.tokens, strict=True):
                line = _line(pair, problem, template_args, np.asarray(tokens).tolist())
                lines.append(line)
                done.append(line)
        report(len(done), len(problems))
    return done


def gold_answers(
    pair: ModelPair, problems: Sequence[Problem], template_args: Mapping[str, Any] | str | Sequence[str] = ()
) -> list[CorpusLine]:
    """The worked solutions of the problems, each ended as the tokenizer ends a text.

    Raises:
      InputError: a problem has no solution, or the pair no tokenizer.
    """
    if pair.tokenizer is None:
        raise InputError("solutions are text, and the pair has no tokenizer: add one, or train on the target's answers")
    lacking = [problem.id for problem in problems if problem.solution is None]
    if lacking:
        raise InputError(f"{lacking[0]} has no worked solution: train on the target's own answers")
    end = list(pair.eos[:1])
    ended = [[*pair.tokenizer(p.solution, add_special_tokens=False)["input_ids"], *end] for p in problems]
    return [_line(pair, problem, template_args, answer) for problem, answer in zip(problems, ended, strict=True)]


def _line(pair: ModelPair, problem: Problem, template_args: Any, answer: list[int]) -> CorpusLine:
    return CorpusLine(id=problem.id, prompt=_prompt(pair, problem, template_args), answer=answer)


def _prompt(pair: ModelPair, problem: Problem, template_args: Any) -> list[int]:
    where = f"problem {problem.id}"
    return tokenize(problem.prompt, pair.tokenizer, pair.target.vocab_size, where, template_args).tolist()


def _claim(path: Path, head: CorpusHead, begun: bool) -> None:
    """Says of what the answers are. Raises `InputError` if they are of something else, or nothing says of what."""
    if not begun:  # a first call that was refused, or killed before it had answers, binds no other
        write(path, head)
        return
    if not path.exists():
        raise InputError(f"{path.with_suffix('.jsonl')} holds answers without {path.name}: choose an empty folder")
    found = read(path, CorpusHead, _ADVICE)
    if same_model(found.target, head.target):
        found = structs.replace(found, target=head.target)
    if others := differing(found, head):
        raise InputError(
            f"{path.parent} holds answers that differ in {others}: choose an empty folder, or ask for the same"
        )
    write(path, head)


def _done(path: Path, pair: ModelPair, problems: Sequence[Any], template_args: Any) -> list[CorpusLine]:
    done = read_log(path, CorpusLine, _ADVICE, mend=True)
    for line, problem in zip(done, problems, strict=False):
        if line.id != problem.id:
            raise InputError(f"{path} holds an answer to {line.id}, and {problem.id} was asked: choose an empty folder")
        if line.prompt != _prompt(pair, problem, template_args):
            raise InputError(
                f"{path} holds an answer to {problem.id} by other template_args or another tokenizer: "
                "choose an empty folder"
            )
    return done[: len(problems)]

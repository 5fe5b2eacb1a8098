"""Other ways to a dataset than the semi-greedy search: marked answers, likelihoods, several rollouts.

All write the dataset of `judges.dataset`, so that one trainer serves all. These read an answer that stays as it is, by
scoring it whole; a killed run goes on at the question it was at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.generation import prompts
from kljudge_jax.generation.chat_template import TemplateArgs
from kljudge_jax.generation.generate import generate
from kljudge_jax.generation.score import score
from kljudge_jax.judges.dataset import GAP_TOKENS, Dataset, DatasetWriter, gap_ids, read_dataset
from kljudge_jax.judges.labels import first_wrong_labels, likelihood_difference, pivot_score
from kljudge_jax.judges.passes import compare
from kljudge_jax.judges.reference import make_reference
from kljudge_jax.models.fingerprint import fingerprints
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.progress_update import ProgressUpdate
from kljudge_jax.records import Record
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.tasks.files import read_problems
from kljudge_jax.tasks.prompts import Turn
from kljudge_jax.verification.head import PairIdentity

_STEP = 64  # texts are scored at lengths of so many tokens, so that few programs are compiled


class MarkedAnswer(Record, frozen=True, kw_only=True):
    """An answer in which the first wrong token is marked: a line of what `label_marked_answers` reads.

    Raises:
      ValueError: the answer is empty, or wrong from no character of it.
    """

    prompt: str | tuple[Turn, ...]
    answer: str
    wrong_from: int | None

    @property
    def chat(self) -> str | list[dict[str, str]]:
        """The prompt as the tokenizer takes it."""
        return self.prompt if isinstance(self.prompt, str) else [turn.to_dict() for turn in self.prompt]

    def __post_init__(self) -> None:
        if not self.answer:
            raise ValueError("answer is empty: give the text that was marked")
        if self.wrong_from is not None and not 0 <= self.wrong_from < len(self.answer):
            raise ValueError(f"answer is wrong from {self.wrong_from}: give null, or a character of the answer")


def label_marked_answers(
    pair: ModelPair,
    path: str | Path,
    folder: str | Path,
    *,
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Judge Decoding's data: every token of answers in which the first wrong token is marked.

    Args:
      pair: target and draft, with a tokenizer.
      path: JSON lines (`.jsonl`, `.jsonl.gz`) of objects with "prompt" (text, or a chat: a list of {"role",
        "content"}), "answer" (text) and "wrong_from": null where the answer is right, else the character of the answer
        (0 for its first) at which the first wrong token stands. The published data has a right and a wrong answer
        to each of 500 prompts; answers to one prompt count as one question.
      folder: for the dataset.
      template_args: what the chat template is told beside the messages.
      progress: told after each question how many are done, by a `ProgressUpdate`.

    Raises:
      InputError: a line cannot be used.
    """
    questions: dict[str, list[MarkedAnswer]] = {}
    for record in read_problems(path, MarkedAnswer):
        questions.setdefault(repr(record.chat), []).append(record)

    def rows(index: int, asked: list[MarkedAnswer], read: _Reader) -> tuple[str, list[dict]]:
        found = []
        for record in asked:
            prompt = read.prompt(record.chat, f"prompt {index}")
            encoded = read.tokenizer(record.answer, add_special_tokens=False, return_offsets_mapping=True)
            tokens = np.concatenate([prompt, np.asarray(encoded["input_ids"], np.int32)])
            marks = first_wrong_labels(encoded["offset_mapping"], record.wrong_from)
            for row, wrong in zip(read.rows(tokens, len(prompt), range(len(prompt), len(tokens))), marks, strict=True):
                found.append(row | {"important": wrong, "score": float(wrong), "rolled_out": False})
        return "mined", found

    origin = {"labels": "judge-decoding", "task": Path(path).name}
    return _write(pair, folder, origin, list(questions.values()), rows, template_args, progress)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """SelfJudge's labels: what the token costs in log-likelihood. Needs no checker.

    Attributes:
      max_new_tokens: the most tokens of an answer.
      threshold: in nats; a token that costs more is important. `Dataset.relabelled` tries another.
      window: how many tokens after it count as well.
    """

    labels: ClassVar[str] = "selfjudge"

    max_new_tokens: int = 256
    threshold: float = 1.0
    window: int = 20

    def rows(self, index: int, problem: Problem, read: _Reader, task: Task, seed: int) -> tuple[str, list[dict]]:
        tokens, start = read.answer(problem, self.max_new_tokens)
        original = read.log_probabilities(tokens)
        found = []
        for at, token in read.mismatches(tokens, start):
            swapped = tokens.copy()
            swapped[at] = token
            less_likely = read.log_probabilities(swapped[: at + 1 + self.window])
            cost = likelihood_difference(original, less_likely, at, self.window)
            row = read.rows(swapped[: at + 1], start, [at])[0] | {"target_token": tokens[at]}
            found.append(row | {"important": cost > self.threshold, "score": cost, "rolled_out": False})
        return "mined", found


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Pivot-aware decoding's labels: by several sampled rollouts of the target each.

    Attributes:
      max_new_tokens: the most tokens of an answer.
      threshold: a token after which a larger share of rollouts loses the answer is important.
      rollouts: how many.
      temperature: theirs.
      reference: as in `judges.semi_greedy.Options`.
    """

    labels: ClassVar[str] = "pivot"

    max_new_tokens: int = 256
    threshold: float = 0.5
    rollouts: int = 8
    temperature: float = 0.7
    reference: str = "target"

    def rows(self, index: int, problem: Problem, read: _Reader, task: Task, seed: int) -> tuple[str, list[dict]]:
        tokens, start = read.answer(problem, self.max_new_tokens)
        held_to = make_reference(task, problem, read.text(tokens[start:]), self.reference)
        if held_to is None:
            return "no reference", []
        found = []
        for at, token in read.mismatches(tokens, start):
            swapped = np.append(tokens[:at], np.int32(token))
            left = start + self.max_new_tokens - len(swapped)
            answers = [swapped[start:]] * self.rollouts
            if token not in read.pair.eos and left > 0:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), at)
                asked: dict[str, Any] = {"max_new_tokens": left, "temperature": self.temperature, "key": key}
                out = generate(read.pair, [swapped] * self.rollouts, verifier=None, **asked)
                answers = [np.concatenate([swapped[start:], more]) for more in out.tokens]
            lost = pivot_score([held_to.same(read.text(answer)) for answer in answers])
            row = read.rows(swapped, start, [at])[0] | {"target_token": tokens[at]}
            found.append(row | {"important": lost > self.threshold, "score": lost, "rolled_out": True})
        return "mined", found


def label_mismatches(
    pair: ModelPair,
    task: Task,
    folder: str | Path,
    by: Likelihood | Rollouts,
    *,
    split: str = "train",
    n: int = 1000,
    seed: int = 7,
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Labels the draft's mismatches on the target's answers, which stay as they are; arguments as of `mining.mine`."""

    def rows(index: int, problem: Problem, read: _Reader) -> tuple[str, list[dict]]:
        return by.rows(index, problem, read, task, seed)

    origin = {"labels": by.labels, "task": task.name, "split": split, "seed": seed, "dtype": pair.precision}
    questions = task.problems(split=split, n=n, seed=seed)
    return _write(pair, folder, origin | dataclasses.asdict(by), questions, rows, template_args, progress)


def _write(pair, folder, origin: Mapping[str, Any], questions: Sequence, rows: Callable, template_args, progress):
    args = TemplateArgs(template_args)
    identity = PairIdentity.of(pair)
    if pair.tokenizer is None:
        raise InputError("labels are made of text, and the pair has no tokenizer: load one with it")
    read = _Reader(pair, gap_ids(identity.vocab_size, GAP_TOKENS), args)
    origin = {**origin, "weights": fingerprints(pair), **({"template_args": dict(args)} if args else {})}
    with DatasetWriter(folder, identity, origin, len(read.ids)) as writer:
        # A problem is its prompt; of marked answers the marks count as well.
        writer.expect([question.prompt if isinstance(question, Problem) else question for question in questions])
        done = writer.finished
        for index, question in enumerate(questions):
            if index in done:
                continue
            try:
                status, found = rows(index, question, read)
            except _NoNumbers:
                status, found = "failed", []
            important = sum(bool(row["important"]) for row in found)
            writer.append([({"question": index, "status": status, "important": important}, found)])
            finished = len(writer.records)
            line = f"{finished} of {len(questions)} questions"
            progress(ProgressUpdate(line, finished, len(questions), before=len(done)))
    return read_dataset(folder)


class _NoNumbers(Exception):
    """A model returned NaN or +inf."""


class _Reader:
    """Both models' views of whole texts."""

    def __init__(self, pair: ModelPair, ids: np.ndarray, template_args: TemplateArgs):
        assert pair.tokenizer is not None
        self.template_args = template_args
        self.pair, self.tokenizer, self.ids = pair, pair.tokenizer, jnp.asarray(ids)
        self.vocab_size = pair.target.vocab_size

    def text(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode([t for t in tokens if t not in self.pair.eos], skip_special_tokens=True)

    def prompt(self, asked: str | list[dict[str, str]], where: str) -> np.ndarray:
        """Token ids of a prompt."""
        return prompts.tokenize(asked, self.tokenizer, self.vocab_size, where, self.template_args)

    def answer(self, problem: Problem, max_new_tokens: int) -> tuple[np.ndarray, int]:
        """The prompt with the target's greedy answer, and where that begins."""
        prompt = self.prompt(problem.prompt, f"problem {problem.id}")
        out = generate(self.pair, prompt, verifier=None, max_new_tokens=max_new_tokens)
        if out.stats.failed:
            raise _NoNumbers
        return np.concatenate([prompt, out.tokens[0]]).astype(np.int32), len(prompt)

    def mismatches(self, tokens: np.ndarray, start: int) -> Iterator[tuple[int, int]]:
        """Where the draft would have written another token than the text, and which."""
        choices = np.asarray(jnp.argmax(self._score(self.pair.draft, tokens)[0], axis=-1))
        for at in range(start, len(tokens)):
            if choices[at - 1] != tokens[at]:
                yield at, int(choices[at - 1])

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Of each token but the first under the target, f32 `[T]`; 0 for the first."""
        logits = self._score(self.pair.target, tokens)[0]
        return np.asarray(_log_probabilities(logits, jnp.asarray(_padded(tokens))))[: len(tokens)]

    def rows(self, tokens: np.ndarray, start: int, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The columns of the tokens at `positions`, but for their labels; positions count from 1 at the least."""
        (target_logits, target_hidden), (draft_logits, draft_hidden) = (
            self._score(model, tokens) for model in (self.pair.target, self.pair.draft)
        )
        found = []
        for first in range(0, len(positions), _STEP):
            some = np.asarray(positions[first : first + _STEP])
            at = np.resize(some, _STEP if len(positions) > 1 else 1)  # two sizes are compiled, one and a step
            ends = np.stack([at - 1, at], axis=1)
            columns = compare(target_logits[ends], draft_logits[ends], jnp.asarray(tokens[at]), self.ids)
            columns |= {"target_hidden": target_hidden[at], "draft_hidden": draft_hidden[at]}
            columns |= {"target_token": jnp.argmax(target_logits[at - 1], axis=-1)}
            columns = jax.device_get(columns)
            if not all(np.isfinite(columns[name]).all() for name in ("target_hidden", "draft_hidden")):
                raise _NoNumbers
            found += [
                {name: values[i] for name, values in columns.items()}
                | {"position": position - start, "draft_token": tokens[position]}
                for i, position in enumerate(some)
            ]
        return found

    def _score(self, model, tokens):
        logits, hidden = score(model, _padded(tokens)[None])
        return logits[0], hidden[0].astype(jnp.float32)


def _padded(tokens: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(tokens, np.int32), (0, -len(tokens) % _STEP))


@jax.jit
def _log_probabilities(logits, tokens):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1], axis=-1), tokens[1:, None], axis=-1)[:, 0]
    return jnp.pad(chosen, (1, 0))

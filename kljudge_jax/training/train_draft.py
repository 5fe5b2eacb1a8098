"""A draft head for any target of ours: its answers, their features, the training, and the head in the public format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import structs

from kljudge_jax.errors import InputError
from kljudge_jax.models.draft_vocab import with_ends
from kljudge_jax.models.eagle3_files import check_writable, described_for, write_eagle3
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.progress_update import ProgressUpdate
from kljudge_jax.records import Record, read_log, write
from kljudge_jax.results_folder import FolderLock, results_folder
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.tasks.files import FileTask
from kljudge_jax.training.draft_corpus import gold_answers, own_answers
from kljudge_jax.training.draft_features import compute_features
from kljudge_jax.training.draft_head import HeadData, HeadProgress, HeadRecipe, check_divides, has_begun, train_head
from kljudge_jax.training.draft_start import starting_values
from kljudge_jax.training.draft_vocab import (
    count_tokens,
    most_frequent,
    read_draft_vocab,
    share_covered,
    write_draft_vocab,
)

# What a token of the answers counts in the choice of the vocabulary, beside one of questions and solutions.
_OWN = 20

# Whose answers a head learns from.
ANSWERS = ("target", "gold")


class TrainedDraft(Record, frozen=True, kw_only=True):
    """What a training came to (`draft.json`).

    Attributes:
      head: the folder of the head, what `draft=` takes; None where the vocabulary alone was asked for.
      draft_vocab: how many tokens it can draft.
      covered: share of the corpus' answer tokens that are among them.
      sequences, tokens: of the corpus; tokens are those of answers.
      curve: what was reported while it trained.
    """

    format: Literal["kljudge_jax.draft"] = "kljudge_jax.draft"
    version: Literal[1] = 1
    head: str | None
    draft_vocab: int
    covered: float
    sequences: int
    tokens: int
    curve: list[HeadProgress]

    @property
    def mean_acceptance_length(self) -> float | None:
        """On the held-out answers: see `HeadProgress`."""
        return self.curve[-1].mean_acceptance_length if self.curve else None


# Tokens that a head can draft by default.
_DRAFT_VOCAB = 8192


def train_draft(
    pair: ModelPair,
    task: Task | Sequence[Problem],
    folder: str | Path,
    recipe: HeadRecipe = HeadRecipe(),  # noqa: B008 - frozen
    *,
    split: str = "train",
    n: int = 400,
    seed: int = 0,
    answers: str = "target",
    draft_vocab: int | Sequence[int] | None = None,
    layers: tuple[int, ...] | None = None,
    vocab_only: bool = False,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    report: Callable[[ProgressUpdate], None] = lambda update: None,
) -> TrainedDraft:
    """Trains an EAGLE-3 head that drafts for the pair's target.

    A second call with the same arguments goes on where a killed one stopped: answers, features and training each.

    Args:
      pair: the target; a draft is not needed.
      task: whose problems are asked, or the problems. The last `recipe.held_out` of them are never learnt.
      folder: gets `corpus.jsonl`, `corpus.json`, `features/`, `training/`, `draft_vocab.txt`, `head/`, `draft.json`
        and `lock`: one call at a time writes there.
      recipe: how.
      split: of the task.
      n: how many of its problems.
      seed: of their order.
      answers: "target" for the target's own greedy answers, "gold" for the problems' solutions.
      draft_vocab: how many tokens the head can draft, the most frequent ones of the answers, and beyond those of the
        task's questions and solutions; or their ids. None is 8,192, or all of a smaller vocabulary.
      layers: of the target, to be read; None is 2, the middle one and the last but one.
      vocab_only: writes the list of tokens and trains nothing: what `draft_vocab=` of a model draft takes.
      max_new_tokens: the most of an answer of the target's.
      batch_size: how many answers are written side by side.
      template_args: what the chat template is told beside the messages, such as `{"enable_thinking": False}`.
      report: called with what was done.

    Raises:
      InputError: the target cannot be read or asked, the problems have no answers to learn from, the batch does not
        divide over the devices, or the folder holds something else or is written to by another process.
    """
    if answers not in ANSWERS:
        raise InputError(f"answers are {' or '.join(ANSWERS)}, not {answers!r}")
    problems = task if isinstance(task, Sequence) else task.problems(split=split, n=n, seed=seed)
    if not problems:
        raise InputError("there is nothing to learn from: give at least one problem")
    target = pair.target
    if not isinstance(target, Transformer):
        raise InputError("a head is trained for a model of ours: its layer begins as one of the target's")
    layers = tuple(layers) if layers is not None else late_layers(target.num_layers)
    if not layers or len(set(layers)) < len(layers) or not all(0 <= i <= target.num_layers for i in layers):
        raise InputError(
            f"layers lie from 0 to {target.num_layers}, the target's number, each once, not {list(layers)}"
        )
    if not vocab_only:
        check_divides(recipe, len(jax.devices()))
        check_writable(target.config)
        least = recipe.held_out + recipe.batch_size
        if len(problems) < least:
            raise InputError(
                f"{len(problems)} problems leave no batch to learn from: the recipe holds {recipe.held_out} out and "
                f"takes {recipe.batch_size} at a time; give at least {least}"
            )
    if draft_vocab is None:
        draft_vocab = min(_DRAFT_VOCAB, target.vocab_size)
    if isinstance(draft_vocab, int) and not 1 <= draft_vocab <= target.vocab_size:
        raise InputError(f"a draft_vocab is from 1 to the target's {target.vocab_size} tokens, not {draft_vocab}")
    given = []
    if not isinstance(draft_vocab, int):
        given = list(with_ends(read_draft_vocab(draft_vocab, target.vocab_size), pair.eos))
    folder = results_folder(folder)
    with FolderLock(folder):
        if vocab_only and has_begun(folder / "training"):
            raise InputError(
                f"{folder} holds the training of a head: choose an empty folder for a list of tokens alone"
            )
        corpus = _answered(pair, problems, folder, answers, max_new_tokens, batch_size, template_args, report)
        learnt = corpus if vocab_only else corpus[: -recipe.held_out]
        counts = count_tokens([line.answer for line in learnt], None, target.vocab_size)
        if not isinstance(draft_vocab, int):
            ranked = given
        else:
            held_out = {line.id for line in corpus[len(learnt) :]}
            texts = _texts(task, problems, split, seed, held_out) if pair.tokenizer is not None else []
            around = count_tokens(texts, pair.tokenizer, target.vocab_size)
            ranked = most_frequent(_OWN * counts + around, draft_vocab, pair.eos)
        listed = folder / "draft_vocab.txt"
        if has_begun(folder / "training") and listed.exists() and read_draft_vocab(listed) != ranked:
            raise InputError(
                f"{folder} holds the training of a head of other tokens, as other answers have: choose an empty folder"
            )
        write_draft_vocab(listed, ranked)
        rows = np.sort(np.asarray(ranked))
        made = TrainedDraft(
            head=None,
            draft_vocab=len(rows),
            covered=share_covered(counts, ranked),
            sequences=len(learnt),
            tokens=int(counts.sum()),
            curve=[],
        )
        if vocab_only:
            write(folder / "draft.json", made)
            return made

        def read(done: int, total: int) -> None:
            report(ProgressUpdate(f"features of {done:,} of {total:,} tokens", done, total))

        features = compute_features(target, corpus, layers, folder / "features", report=read)
        config = described_for(target.config, len(rows), layers=layers)
        start = starting_values(target, config, rows, recipe.seed)
        data = HeadData(features, recipe, lambda tokens: np.asarray(target.embed(jnp.asarray(tokens)), np.float32))

        def learned(progress: HeadProgress) -> None:
            report(ProgressUpdate(str(progress), progress.step, progress.steps))

        values = train_head(config, start, rows, data, folder / "training", learned)
        # In bfloat16, as published heads are.
        values = {name: x.astype(jnp.bfloat16) for name, x in values.items()}
        write_eagle3(folder / "head", config, values, rows.tolist(), pair.tokenizer)
        curve = read_log(folder / "training" / "log.jsonl", HeadProgress)
        made = structs.replace(made, head=str(folder / "head"), curve=curve)
        write(folder / "draft.json", made)
        return made


def _texts(task: Task | Sequence[Problem], problems: Sequence[Problem], split: str, seed: int, held_out: set[str]):
    """Questions and solutions that show which tokens such answers have, beyond those written: of a file, all of it."""
    every = task.problems(split=split, n=None, seed=seed) if isinstance(task, FileTask) else problems
    for problem in every:
        if problem.id not in held_out:
            asked = problem.prompt
            yield asked if isinstance(asked, str) else " ".join(str(turn["content"]) for turn in asked)
            yield problem.solution or ""


def late_layers(num_layers: int) -> tuple[int, ...]:
    """The layers that a new head reads: an early one, the middle, and what the target's last block reads.

    Published heads read n - 3 in place of n - 1. A head that begins as the last block computes the target's own states
    with its input.
    """
    return tuple(dict.fromkeys((min(2, num_layers - 1), num_layers // 2, num_layers - 1)))


def _answered(pair, problems, folder: Path, answers: str, max_new_tokens, batch_size, template_args, report):
    if answers == "gold":
        return gold_answers(pair, problems, template_args)

    def told(done: int, total: int) -> None:
        report(ProgressUpdate(f"answers {done:,} of {total:,}", done, total))

    path = folder / "corpus.jsonl"
    return own_answers(
        pair,
        problems,
        path,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        template_args=template_args,
        report=told,
    )

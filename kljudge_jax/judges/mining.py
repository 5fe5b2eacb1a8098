"""Mining: a draft's mismatches on a task's problems, with labels that `semi_greedy` finds, as a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.generation.chat_template import TemplateArgs
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.judges.dataset import Dataset, DatasetWriter, gap_ids, read_dataset
from kljudge_jax.judges.semi_greedy import Options, Search, check_caches
from kljudge_jax.models.fingerprint import fingerprints
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.progress_update import ProgressUpdate
from kljudge_jax.tasks.base import Task
from kljudge_jax.verification.head import PairIdentity


def mine(
    pair: ModelPair,
    task: Task,
    folder: str | Path,
    *,
    split: str = "train",
    n: int = 1000,
    seed: int = 7,
    options: Options = Options(),  # noqa: B008 - frozen
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    config: DecodingConfig | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Labels the draft's mismatches on `n` problems, into a dataset that a killed run goes on with.

    Args:
      pair: a target and a draft with a tokenizer.
      task: its checker reads final answers.
      folder: see `judges.dataset`; a larger `n` adds to what is there.
      split: of the task.
      n: problems.
      seed: of the choice of problems.
      options: how.
      template_args: what the chat template is told beside the messages, such as `{"enable_thinking": False}`.
      config: its `max_new_tokens`, `batch`, `seed` and `template_args` stand for those above. Mining is greedy, and
        drafts one token.
      progress: told now and then how many questions are done, by a `ProgressUpdate`.

    Returns:
      The dataset of all questions that are finished. A question's record says how it ended: "mined"; "no reference",
      the target's answer has no final answer, or with "gold" is wrong; "failed", a model returned NaN or +inf.

    Raises:
      InputError: the pair has no draft model (a head is none) or tokenizer, or a model that gives logits alone or whose
        cache cannot take back any number of tokens; a prompt does not fit, the task checks nothing, or the folder
        holds something else.
    """
    if config is not None:
        if not config.greedy or config.stop:
            raise InputError("mining is greedy and reads whole answers: leave temperature and stop out of its config")
        seed, batch = config.seed, config.batch or options.batch
        template_args = config.template_args
        options = dataclasses.replace(options, max_new_tokens=config.max_new_tokens, batch=batch)
    args = TemplateArgs(template_args)
    identity = PairIdentity.of(pair)
    check_caches(pair)
    if pair.tokenizer is None:
        raise InputError("mining reads answers as text, and the pair has no tokenizer: load one with it")
    problems = task.problems(split=split, n=n, seed=seed)
    ids = gap_ids(identity.vocab_size, options.gap_tokens)
    origin = {
        "labels": "semi-greedy",
        "task": task.name,
        "split": split,
        "seed": seed,
        "dtype": pair.precision,
        "weights": fingerprints(pair),
        "max_new_tokens": options.max_new_tokens,
        "reference": options.reference,
        "shortcut": options.shortcut,
    } | ({"template_args": dict(args)} if args else {})
    with DatasetWriter(folder, identity, origin, len(ids)) as writer:
        writer.expect([problem.prompt for problem in problems])
        done = writer.finished
        before = len(set(range(len(problems))) & done)

        def report():
            of = [record for record in writer.records if record.question < len(problems)]
            rows, important = (sum(getattr(record, name) for record in of) for name in ("rows", "important"))
            line = (
                f"{len(of)} of {len(problems)} questions, {rows} mismatches, {important / max(rows, 1):.1%} important"
            )
            progress(ProgressUpdate(line, len(of), len(problems), before))

        if before < len(problems):
            for finished in Search(pair, task, problems, done, options, ids, args).run():
                if finished:
                    writer.append(finished)
                report()
    return read_dataset(folder)

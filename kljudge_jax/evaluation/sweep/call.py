"""The public call `sweep`: rules side by side on a task, from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.report.write import TaskResult, read_metadata, write_report
from kljudge_jax.evaluation.sweep import run as sweeps
from kljudge_jax.evaluation.sweep.examples import examples as traced_examples
from kljudge_jax.evaluation.sweep.summary import summarise
from kljudge_jax.generation.config import DecodingConfig, DecodingFields, configured
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.results_folder import folder_or_temporary
from kljudge_jax.tasks.base import Task
from kljudge_jax.verification import Verifier


def sweep(
    pair: ModelPair,
    task: Task,
    rules: Sequence[str | Verifier | None] = ("none", "exact", "kl:0.4"),
    *,
    draft_lengths: Sequence[int | Adaptive | str] | None = None,
    n: int = 100,
    split: str = "test",
    examples: int = 1,
    folder: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    config: DecodingConfig | None = None,
    **decoding: Unpack[DecodingFields],
) -> TaskResult:
    """Answers the problems of a task under several rules, and compares accuracy, acceptance and speed.

    Args:
      pair: the models.
      task: what `load_task` returned.
      rules: by their spec strings, or rules themselves, those of your own included; "none" is plain decoding, which the
        others are compared with.
      draft_lengths: every rule runs at each of them; None is that of the configuration.
      n: problems.
      split: of the task.
      examples: so many answers are kept token by token.
      folder: where the answers and the report go; a call that finds answers of the same sweep there goes on after
        them. None keeps nothing.
      report: told of every batch.
      config: how they are answered; None is `DecodingConfig(batch=8)`. Its seed chooses the problems too.
      **decoding: fields of the configuration, such as `temperature=0.7`, in place of those of `config`.

    Returns:
      one row of figures a rule and draft length; a notebook shows table, picture and what follows from them.

    Raises:
      InputError: a rule or a size that cannot be, or a folder that holds another sweep.
    """
    config = configured("sweep", config, decoding)
    lengths = [config.draft_length] if draft_lengths is None else draft_lengths
    if not rules or not lengths or n < 1 or examples < 0:
        raise InputError("name at least one rule and one draft length; n starts at 1, examples at 0")
    plan = sweeps.Plan(sweeps.grid(rules, lengths), n, split, config)
    with folder_or_temporary(folder) as place:
        rows = summarise(sweeps.run_sweep(pair, task, plan, place, report))
        shown = traced_examples(pair, sweeps.Part(task, plan, place), examples) if examples else []
        result = TaskResult(task.name, rows, shown, greedy=config.greedy)
        if folder is not None:
            write_report(place, [result], read_metadata([place], "kljudge_jax.sweep"))
    return result

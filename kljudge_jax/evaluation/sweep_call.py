"""The public call `sweep`: rules side by side on a task, from Python."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation import sweep as sweeps
from kljudge_jax.evaluation.examples import examples as traced_examples
from kljudge_jax.evaluation.report import TaskResult, read_setting, write_report
from kljudge_jax.evaluation.summary import summarise
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.tasks.base import Task


def sweep(
    pair: ModelPair,
    task: Task,
    rules: Sequence[str] = ("none", "exact", "kl:0.4"),
    *,
    draft_lengths: Sequence[int] = (8,),
    n: int = 100,
    split: str = "test",
    seed: int = 7,
    batch: int = 8,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    drafter: str = "model",
    examples: int = 0,
    folder: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> TaskResult:
    """Answers the problems of a task under several rules, and compares accuracy, acceptance and speed.

    Args:
      pair: the models.
      task: what `load_task` returned.
      rules: by their words, those of rules of your own included; "none" is plain decoding, which the others are
        compared with.
      draft_lengths: every rule runs at each of them.
      n: problems.
      split: of the task.
      seed: of the choice of problems, and of the draws when sampling.
      batch: answers decoded side by side.
      max_new_tokens: the most tokens of an answer.
      temperature: 0 is greedy.
      drafter: the word of one, such as "lookup:3".
      examples: so many answers are kept token by token.
      folder: where the answers and the report go; a call that finds answers of the same sweep there goes on after
        them. None keeps nothing.
      report: told of every batch.

    Returns:
      one row of figures a rule and draft length; a notebook shows table, picture and what follows from them.

    Raises:
      InputError: a rule or a size that cannot be, or a folder that holds another sweep.
    """
    if not rules or not draft_lengths or min(*draft_lengths, n, batch, max_new_tokens) < 1 or examples < 0:
        raise InputError("name at least one rule and one draft length; lengths, n and batch start at 1, examples at 0")
    plan = sweeps.Plan(
        cells=sweeps.grid(rules, draft_lengths),
        n=n,
        split=split,
        seed=seed,
        batch=batch,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        drafter=drafter,
    )
    with contextlib.ExitStack() as stack:
        place = Path(folder if folder is not None else stack.enter_context(tempfile.TemporaryDirectory()))
        rows = summarise(sweeps.run_sweep(pair, task, plan, place, report))
        shown = traced_examples(pair, sweeps.Part(task, plan, place), examples) if examples else []
        result = TaskResult(task.name, rows, shown, greedy=temperature == 0)
        if folder is not None:
            write_report(place, [result], read_setting([place], "kljudge_jax.sweep"))
    return result

"""The public call `bench`: speed on this machine, from Python."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation import bench as benches
from kljudge_jax.evaluation.bench_models import near_prompts
from kljudge_jax.evaluation.bench_table import bench_markdown
from kljudge_jax.machine import describe_machine
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.results_folder import results_folder
from kljudge_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a bench measured; a notebook shows its tables.

    Attributes:
      figures: as `bench.json` holds them.
    """

    figures: dict[str, Any]

    def markdown(self, profile: bool = False) -> str:
        """The tables; with `profile`, also where a cycle goes."""
        return bench_markdown(self.figures, profile)

    def save(self, folder: str | Path, profile: bool = False) -> Path:
        """Writes `bench.json` and `table.md`, and returns the path of the first: what `compare` reads.

        Raises:
          InputError: the folder cannot be made.
        """
        folder = results_folder(folder)
        (folder / "bench.json").write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        (folder / "table.md").write_text(self.markdown(profile), encoding="utf-8")
        return folder / "bench.json"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def bench(
    pair: ModelPair,
    task: Task,
    rules: Sequence[str] = ("exact", "kl:0.4"),
    *,
    batches: Sequence[int] = (1,),
    draft_length: int = 8,
    prompts: int = 4,
    max_new_tokens: int = 64,
    rounds: int = 7,
    report: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Measures speed alone: the parts of a cycle, tokens per second, bandwidth, and the draft length that pays.

    Args:
      pair: the models.
      task: whose prompts are answered.
      rules: by their words; plain decoding always runs.
      batches: answers decoded side by side, one size after another.
      draft_length: K.
      prompts: how many of the task's test split, at least one batch of them.
      max_new_tokens: as `generate` takes it.
      rounds: samples of everything.
      report: told of every compilation and every round.

    Raises:
      InputError: a rule or a size that cannot be.
    """
    if not batches or min(*batches, draft_length, prompts, rounds) < 1:
        raise InputError("batches, draft_length, prompts and rounds start at 1")
    if max_new_tokens <= draft_length + 1:
        raise InputError(f"max_new_tokens leaves no room for a whole draft: give at least {draft_length + 2}")
    plan = benches.Plan(
        rules=tuple(dict.fromkeys([benches.PLAIN, *rules])),
        batches=tuple(batches),
        draft_length=draft_length,
        max_new_tokens=max_new_tokens,
        rounds=rounds,
    )
    asked = near_prompts(task, "test", max(prompts, *batches))
    return Bench(measured(pair, asked, plan, task.name, "kljudge_jax.bench", report))


def measured(
    pair: ModelPair, prompts: Sequence[Any], plan: benches.Plan, task: str, command: str, report: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of a bench with what made them, as `bench.json` holds them."""
    return {
        "schema": benches.SCHEMA,
        "kind": benches.KIND,
        "command": command,
        "machine": describe_machine(),
        "task": task,
        **benches.run_bench(pair, prompts, plan, report=report),
    }

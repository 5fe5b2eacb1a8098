"""The public call `bench`: speed on this machine, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench import run as benches
from kljudge_jax.evaluation.bench.models import near_prompts
from kljudge_jax.evaluation.bench.records import BenchFigures
from kljudge_jax.evaluation.bench.table import bench_markdown
from kljudge_jax.generation.config import DecodingConfig, DecodingFields, configured
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.records import write, write_text
from kljudge_jax.results_folder import results_folder
from kljudge_jax.tasks.base import Task
from kljudge_jax.verification import Verifier
from kljudge_jax.verification.specs import spec_of


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a bench measured; a notebook shows its tables.

    Attributes:
      figures: as `bench.json` holds them.
    """

    figures: BenchFigures

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain dicts, lists, strings and numbers."""
        return self.figures.to_dict()

    def markdown(self, profile: bool = False) -> str:
        """The tables; with `profile`, also where a cycle goes."""
        return bench_markdown(self.figures, profile)

    def save(self, folder: str | Path, profile: bool = False) -> Path:
        """Writes `bench.json` and `table.md`, and returns the path of the first: what `compare` reads.

        Raises:
          InputError: the folder cannot be made.
        """
        folder = results_folder(folder)
        write(folder / "bench.json", self.figures)
        write_text(folder / "table.md", self.markdown(profile))
        return folder / "bench.json"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def bench(
    pair: ModelPair,
    task: Task,
    rules: Sequence[str | Verifier | None] = ("exact", "kl:0.4"),
    *,
    batches: Sequence[int] = (1,),
    split: str = "test",
    prompts: int = 4,
    rounds: int = 7,
    report: Callable[[str], None] = lambda line: None,
    config: DecodingConfig | None = None,
    **decoding: Unpack[DecodingFields],
) -> Bench:
    """Measures speed alone: the parts of a cycle, tokens per second, bandwidth, and the draft length that pays.

    Args:
      pair: the models.
      task: whose prompts are answered.
      rules: by their spec strings, or rules themselves; plain decoding always runs.
      batches: answers decoded side by side, one size after another.
      split: of the task.
      prompts: how many, at least one batch of them.
      rounds: samples of everything.
      report: told of every compilation and every round.
      config: how they are answered; None is `DecodingConfig(max_new_tokens=64)`. `batches` stand for its batch.
      **decoding: fields of the configuration, such as `draft_length=4`, in place of those of `config`.

    Raises:
      InputError: a rule or a size that cannot be.
    """
    if prompts < 1:
        raise InputError("prompts start at 1")
    named = {spec_of(rule): rule for rule in rules}
    plan = benches.Plan(
        rules=tuple(dict.fromkeys([benches.PLAIN, *named])),
        batches=tuple(batches),
        config=configured("bench", config, decoding),
        rounds=rounds,
        verifiers={name: rule for name, rule in named.items() if rule is not None and not isinstance(rule, str)},
    )
    asked = near_prompts(task, split, max(prompts, *batches))
    return Bench(benches.run_bench(pair, asked, plan, task.name, "kljudge_jax.bench", report))

"""The demonstration: one answer shown token by token, speed at batch 1, and a table over many fresh problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kljudge_jax.evaluation.report.statistics import speed_ratio_interval
from kljudge_jax.evaluation.report.token_page import Answer, answer_of
from kljudge_jax.evaluation.sweep import run as sweep
from kljudge_jax.evaluation.sweep.records import SweepRow
from kljudge_jax.evaluation.sweep.summary import summarise
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.generation.generate import generate
from kljudge_jax.generation.results import Generation
from kljudge_jax.generation.stream import Event, stream
from kljudge_jax.machine import describe_machine
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.progress_update import ProgressUpdate
from kljudge_jax.records import write as write_record
from kljudge_jax.records import write_text
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.text_table import columns, markdown, ranged

MAX_NEW_TOKENS = 160


@dataclasses.dataclass(frozen=True)
class Demo:
    """What is shown.

    Attributes:
      pair: a pair that can answer the task.
      task: whose problems are asked.
      rules: spec strings, "none" (plain decoding, what the others are compared with) first.
      draft_length: K.
      problems: unseen problems; the first is shown, some are timed one by one, all go into the table.
    """

    pair: ModelPair
    task: Task
    rules: tuple[str, ...]
    draft_length: int
    problems: Sequence[Problem]

    def stream(self, rule: str) -> Iterator[Event]:
        """The answer to the first problem, piece by piece."""
        return stream(self.pair, self.problems[0].prompt, trace=True, **self._options(rule))

    def explain(self, rule: str, result: Generation) -> Answer:
        """A streamed answer with what it took."""
        note = f"{result.stats.tokens} tokens in {result.stats.cycles} target passes"
        if result.stats.relaxed:
            note += f"; {result.stats.relaxed} tokens relaxed"
        return answer_of(title(rule), self.pair.tokenizer, result, note=note)

    def time_one_by_one(
        self, count: int = 12, rounds: int = 2, report: Callable[[str], None] = lambda line: None
    ) -> dict[str, SpeedRatio]:
        """Answers `count` problems one at a time under every rule in turn, `rounds` times over.

        They are the ones nearest to the shown one in length, so that they share its compiled programs.
        """
        length = len(self.problems[0].prompt)
        near = sorted(self.problems, key=lambda problem: abs(len(problem.prompt) - length))[:count]
        count = len(near)
        tokens = {rule: np.zeros(count) for rule in self.rules}
        seconds = {rule: np.zeros(count) for rule in self.rules}
        for again in range(rounds):
            for i, problem in enumerate(near):
                report(ProgressUpdate("single answers", again * count + i, rounds * count))
                for rule in self.rules:
                    out = generate(self.pair, problem.prompt, trace=True, **self._options(rule))
                    tokens[rule][i] += out.stats.tokens
                    seconds[rule][i] += out.stats.seconds
        return {rule: _speed_ratio(tokens, seconds, rule, self.rules[0]) for rule in self.rules}

    def compare(self, report: Callable[[str], None] = lambda line: None) -> list[SweepRow]:
        """All problems in one batch under every rule: the rows that `summarise` makes."""
        records = []
        plan = sweep.Plan(
            cells=sweep.grid(self.rules, [self.draft_length]),
            n=len(self.problems),
            config=DecodingConfig(MAX_NEW_TOKENS, batch=len(self.problems)),
        )
        for done, cell in enumerate(plan.cells):
            report(ProgressUpdate(f"{len(self.problems)} problems, {title(cell.rule)}", done, len(plan.cells)))
            records += sweep.answer(self.pair, self.task, plan, cell, self.problems, range(len(self.problems)))
        return summarise(records)

    def _options(self, rule: str) -> dict:
        return {
            "verifier": None if rule == "none" else rule,
            "draft_length": self.draft_length,
            "max_new_tokens": MAX_NEW_TOKENS,
        }


@dataclasses.dataclass(frozen=True)
class SpeedRatio:
    """Tokens per second of answers decoded alone, and how many times those of plain decoding, with its interval."""

    tokens_per_second: float
    ratio: float
    interval: tuple[float, float]


def title(rule: str) -> str:
    """What a person calls the rule."""
    return {"none": "plain decoding (target alone)", "exact": "exact speculative decoding"}.get(rule, rule)


def table(rows: Sequence[SweepRow], speeds: dict[str, SpeedRatio]) -> list[list[str]]:
    """The comparison as cells of text, the head first."""
    lines = []
    for row in rows:
        plain, speed = row.rule == "none", speeds[row.rule]
        low, high = row.accuracy_interval
        lines.append(
            {
                "rule": "plain" if plain else row.rule,
                "right": f"{100 * row.accuracy:.1f} %",
                "95 %": f"{100 * low:.0f} to {100 * high:.0f}",
                "mean acceptance length": f"{row.mean_acceptance_length:.2f}",
                "passes per answer": f"{row.target_passes_per_answer:.1f}",
                "tokens/s, one by one": f"{speed.tokens_per_second:.0f}",
                "speedup": "" if plain else ranged(speed.ratio, speed.interval),
            }
        )
    return columns(lines)


def write(folder: Path, cells: Sequence[Sequence[str]], rows: list[SweepRow], speeds: dict[str, SpeedRatio]) -> None:
    """Writes `table.md` and `summary.json`."""
    write_text(folder / "table.md", markdown(cells))
    summary = {
        "schema": sweep.SCHEMA,
        "machine": describe_machine(),
        "cells": rows,
        "one_by_one": {rule: dataclasses.asdict(speed) for rule, speed in speeds.items()},
    }
    write_record(folder / "summary.json", summary)


def _speed_ratio(tokens, seconds, rule, baseline) -> SpeedRatio:
    speed = {name: tokens[name].sum() / seconds[name].sum() for name in (rule, baseline)}
    interval = speed_ratio_interval((tokens[rule], seconds[rule]), (tokens[baseline], seconds[baseline]))
    return SpeedRatio(float(speed[rule]), float(speed[rule] / speed[baseline]), interval)

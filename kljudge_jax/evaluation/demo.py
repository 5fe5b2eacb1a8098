"""The demonstration: one answer shown token by token, speed at batch 1, and a table over many fresh problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from msgspec import structs

from kljudge_jax.evaluation.demo_record import DemoRow, SpeedRatio
from kljudge_jax.evaluation.report.statistics import speed_ratio_interval
from kljudge_jax.evaluation.report.token_page import Answer, answer_of
from kljudge_jax.evaluation.sweep import run as sweep
from kljudge_jax.evaluation.sweep.summary import summarise
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.generation.generate import generate
from kljudge_jax.generation.results import Generation
from kljudge_jax.generation.stream import Event, stream
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.progress_update import ProgressUpdate
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.text_table import columns, ranged
from kljudge_jax.verification import parse_verifier

MAX_NEW_TOKENS = 160


class Way(NamedTuple):
    """A rule, what proposes for it (nothing: plain decoding), and how many tokens a cycle."""

    rule: str
    draft: Literal["model", "head"] | None
    draft_length: int


@dataclasses.dataclass(frozen=True)
class Demo:
    """What is shown.

    Attributes:
      pair: a pair that can answer the task.
      task: whose problems are asked.
      rules: spec strings, "none" (plain decoding, what the others are compared with) first.
      draft_length: K.
      problems: unseen problems; the first is shown, some are timed one by one, all go into the table.
      head: the same target with a head as its draft, for the table; None leaves it out.
      head_length: K of the head.
    """

    pair: ModelPair
    task: Task
    rules: tuple[str, ...]
    draft_length: int
    problems: Sequence[Problem]
    head: ModelPair | None = None
    head_length: int = 4

    @property
    def ways(self) -> list[Way]:
        """The rows of the table: plain decoding, every rule with the model, and with the head those that can be."""
        drafting = [rule for rule in self.rules if rule != "none"]
        ways = [Way("none", None, self.draft_length), *(Way(rule, "model", self.draft_length) for rule in drafting)]
        if self.head is not None:
            ways += [Way(rule, "head", self.head_length) for rule in drafting if not _reads_draft_states(rule)]
        return ways

    def stream(self, rule: str) -> Iterator[Event]:
        """The answer to the first problem, piece by piece."""
        return stream(self.pair, self.problems[0].prompt, trace=True, **_options(Way(rule, "model", self.draft_length)))

    def explain(self, rule: str, result: Generation) -> Answer:
        """A streamed answer with what it took."""
        note = f"{result.stats.tokens} tokens in {result.stats.cycles} target passes"
        if result.stats.relaxed:
            note += f"; {result.stats.relaxed} tokens relaxed"
        return answer_of(title(rule), self.pair.tokenizer, result, note=note)

    def time_one_by_one(
        self, count: int = 12, rounds: int = 2, report: Callable[[str], None] = lambda line: None
    ) -> list[SpeedRatio]:
        """Answers `count` problems one at a time in every way in turn, `rounds` times over.

        They are the ones nearest to the shown one in length, so that they share its compiled programs.
        """
        length = len(self.problems[0].prompt)
        near = sorted(self.problems, key=lambda problem: abs(len(problem.prompt) - length))[:count]
        count, ways = len(near), self.ways
        tokens, seconds = np.zeros((2, len(ways), count))
        for way in ways:  # once before it counts: what was not shown has programs to load
            self._answer(near[0], way)
        for again in range(rounds):
            for i, problem in enumerate(near):
                report(ProgressUpdate("single answers", again * count + i, rounds * count))
                for row, way in enumerate(ways):
                    out = self._answer(problem, way)
                    tokens[row, i] += out.stats.tokens
                    seconds[row, i] += out.stats.seconds
        return [_speed_ratio(tokens, seconds, row) for row in range(len(ways))]

    def compare(self, speeds: Sequence[SpeedRatio], report: Callable[[str], None] = lambda line: None) -> list[DemoRow]:
        """All problems in one batch in every way: rows as `summarise` makes them, with the speeds of single answers."""
        n, ways = len(self.problems), self.ways
        config = DecodingConfig(MAX_NEW_TOKENS, batch=n)
        records = []
        for done, way in enumerate(ways):
            named = title(way.rule) + (" with the head" if way.draft == "head" else "")
            report(ProgressUpdate(f"{n} problems, {named}", done, len(ways)))
            plan = sweep.Plan(cells=sweep.grid([way.rule], [way.draft_length]), n=n, config=config)
            records.append(sweep.answer(self._pair(way), self.task, plan, plan.cells[0], self.problems, range(n)))
        rows = []
        for way, speed, found in zip(ways, speeds, records, strict=True):
            # Each beside plain decoding alone: a rule is there twice, by its two drafts.
            row = summarise([*records[0], *found] if way.draft else found)[-1]
            rows.append(DemoRow(**structs.asdict(row), draft=way.draft, one_by_one=speed))
        return rows

    def _answer(self, problem: Problem, way: Way) -> Generation:
        return generate(self._pair(way), problem.prompt, trace=True, **_options(way))

    def _pair(self, way: Way) -> ModelPair:
        return self.head if way.draft == "head" and self.head is not None else self.pair


def title(rule: str) -> str:
    """What a person calls the rule."""
    return {"none": "plain decoding (target alone)", "exact": "exact speculative decoding"}.get(rule, rule)


def table(rows: Sequence[DemoRow]) -> list[list[str]]:
    """The comparison as cells of text, the head first."""
    lines = []
    for row in rows:
        speed = row.one_by_one
        low, high = row.accuracy_interval
        lines.append(
            {
                "rule": row.rule if row.draft else "plain",
                "draft": f"{row.draft}, {row.draft_length}" if row.draft else "",
                "right": f"{100 * row.accuracy:.1f} %",
                "95 %": f"{100 * low:.0f} to {100 * high:.0f}",
                "mean acceptance length": f"{row.mean_acceptance_length:.2f}",
                "passes per answer": f"{row.target_passes_per_answer:.1f}",
                "tokens/s, one by one": f"{speed.tokens_per_second:.0f}",
                "speedup": ranged(speed.ratio, speed.interval) if row.draft else "",
            }
        )
    return columns(lines)


def _options(way: Way) -> dict:
    return {
        "verifier": None if way.rule == "none" else way.rule,
        "draft_length": way.draft_length,
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def _reads_draft_states(rule: str) -> bool:
    """Whether it needs a draft model, whose states a head does not have."""
    return "draft_hidden" in getattr(parse_verifier(rule, True), "needs", frozenset())


def _speed_ratio(tokens: np.ndarray, seconds: np.ndarray, row: int) -> SpeedRatio:
    """Of that row of tokens and seconds, `[ways, problems]` each, beside the first."""
    speed = tokens.sum(axis=1) / seconds.sum(axis=1)
    low, high = speed_ratio_interval((tokens[row], seconds[row]), (tokens[0], seconds[0]))
    ratio = float(speed[row] / speed[0])
    return SpeedRatio(tokens_per_second=float(speed[row]), ratio=ratio, interval=(float(low), float(high)))

"""The files of a sweep: `plan.json`, a line of `answers.jsonl`, `examples.json`, and `summary.json` with its rows."""

from __future__ import annotations

from typing import Any, Literal

from kljudge_jax.evaluation.decoding_record import DecodingRecord
from kljudge_jax.machine import Machine
from kljudge_jax.records import Count, Record

SCHEMA = 1
KIND = "sweep"


class AnswerRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One answer, a line of `answers.jsonl`. Fields that 0.1.0 did not always write have defaults.

    Attributes:
      rule, draft_length: of its cell.
      problem: its id.
      right: whether the task's checker says so.
      text, token_ids: the answer; EOS is among the ids.
      turn: place of the first problem of its turn: what was decoded together.
      batch: place of the first problem of its batch or queue.
      tokens, cycles, drafted, accepted, relaxed, acceptance_histogram, seconds, prefill_seconds, compile_seconds,
        own_seconds, slot_cycles, failed, draft_failed, plain_cycles, finish: as in `kljudge_jax.Stats`;
        `own_seconds` is None where rows of a batch shared one time.
      mean_acceptance_length, draft_acceptance_rate: what these come to.
      origin: a letter a token: d(raft), r(elaxed) or t(arget); "" of baselines.
      engine, batch_size, draft_passes: of a baseline, what decoded it, how many side by side, and the draft's passes.
      seed: of its part, where answers of several are pooled; None in a file.
    """

    rule: str
    draft_length: Count | str
    problem: str
    right: bool
    text: str
    token_ids: tuple[Count, ...]
    turn: Count | None = None
    batch: Count
    tokens: Count
    cycles: Count
    drafted: Count
    accepted: Count
    relaxed: Count
    mean_acceptance_length: float = 0.0
    draft_acceptance_rate: float = 0.0
    acceptance_histogram: tuple[Count, ...] = ()
    seconds: float
    prefill_seconds: float = 0.0
    compile_seconds: float = 0.0
    own_seconds: float | None = None
    slot_cycles: float = 0.0
    failed: Count
    draft_failed: Count = 0
    plain_cycles: Count = 0
    finish: str
    origin: str = ""
    engine: dict[str, Any] | None = None
    batch_size: Count | None = None
    draft_passes: Count | None = None
    seed: int | None = None


class CellRecord(Record, frozen=True, kw_only=True):
    """Rule and draft length of a cell.

    Attributes:
      rule, draft_length: of the cell.
      meaning: the number of the rule's meaning (`verification.meaning`); files of 0.1.0 lack it, and have the first.
    """

    rule: str
    draft_length: Count | str
    meaning: Count = 1


class SweepPlan(DecodingRecord, frozen=True, kw_only=True):
    """What was asked of a sweep, or of a calibration: which problems, and how answers are decoded.

    Attributes:
      cells: the combinations.
      n, split: how many problems of which part of the task.
      seeds: of the parts whose answers a report pools.
      budget, delta, without_answers: of a calibration, what may be lost and at which risk.
    """

    cells: tuple[CellRecord, ...]
    n: Count
    split: str
    batch: Count | None = None
    seeds: tuple[int, ...] = ()
    budget: float | None = None
    delta: float | None = None
    without_answers: bool | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


class SweepClaim(Record, frozen=True, kw_only=True):
    """What a folder of answers is of (`plan.json`): only a run of the same may go on in it.

    Attributes:
      target, draft, dtype: the models' names, and what their weights are kept as.
      mesh: sizes and axes, where the models lie on a mesh.
      task: its name.
      weights: digests of the models' parameters. problems: a digest of what is asked; None in files of early versions.
      plan: what was asked.
      machine: on which it began. later_machines: those on which it went on.
    """

    schema: Literal[1] = 1
    target: str
    draft: str | None
    dtype: str
    mesh: dict[str, Any] | None = None
    task: str
    weights: dict[str, str | None] | None = None
    problems: str | None = None
    plan: SweepPlan
    machine: Machine
    later_machines: tuple[Machine, ...] = ()


class TracedAnswer(Record, frozen=True, kw_only=True):
    """An answer token by token: as `evaluation.report.token_page.Answer`; KL is None where no draft token stood.

    Raises:
      ValueError: texts, origins and divergences are not as many.
    """

    title: str
    pieces: list[str]
    origin: list[Literal["draft", "relaxed", "target"]]
    kl: tuple[float | None, ...]
    note: str

    def __post_init__(self) -> None:
        if not len(self.pieces) == len(self.origin) == len(self.kl):
            raise ValueError("pieces, origin and kl are not as many")


class Example(Record, frozen=True, kw_only=True):
    """A problem's prompt and its traced answers, one a rule: an element of `examples.json`."""

    prompt: str
    answers: tuple[TracedAnswer, ...]


class SweepRow(Record, frozen=True, kw_only=True):
    """What a cell's answers come to; `evaluation.sweep.summary.summarise` says what each figure is."""

    rule: str
    draft_length: Count | str
    n: Count
    right: Count
    accuracy: float
    accuracy_interval: tuple[float, float]
    mean_acceptance_length: float
    mean_acceptance_length_interval: tuple[float, float]
    draft_acceptance_rate: float
    acceptance_histogram: tuple[Count, ...]
    acceptance_by_position: tuple[float, ...]
    strict_per_answer: float
    relaxed_per_answer: float
    target_passes_per_answer: float
    tokens_per_answer: float
    cut_at_length: Count
    failed: Count
    tokens_per_second: float
    tokens_per_second_interval: tuple[float, float] | None = None
    slot_occupancy: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    lost: Count | None = None
    won: Count | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    verdict: str | None = None
    same_text: Count | None = None
    first_difference: dict[str, Count] | None = None
    speed: float | None = None
    speed_interval: tuple[float, float] | None = None


class TaskRow(SweepRow, frozen=True, kw_only=True):
    """A row of `summary.json`, which holds those of all tasks."""

    task: str


class SweepSummary(Record, frozen=True, kw_only=True):
    """How and on what a sweep was measured, and its rows (`summary.json`).

    Attributes:
      command: the command line.
      target, draft: the models' names; no draft is None.
      dtype: of the weights.
      plan: what was asked; `plan.seeds` are those of its parts.
      machine: on which it ran. later_machines: on which it went on elsewhere or another day.
      cells: one row a task and cell.
    """

    schema: Literal[1] = 1
    kind: Literal["sweep"] = "sweep"
    command: str
    target: str
    draft: str | None
    dtype: str
    plan: SweepPlan
    machine: Machine
    later_machines: tuple[Machine, ...] = ()
    cells: tuple[TaskRow, ...]

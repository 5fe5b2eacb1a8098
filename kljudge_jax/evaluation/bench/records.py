"""What a bench measured, as `bench.json` holds it. Times are in seconds, rates per second.

`low` and `high` are the 10 and 90 % quantiles over so many `rounds`; the figure beside them is the median.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from kljudge_jax.evaluation.decoding_record import DecodingRecord
from kljudge_jax.machine import Machine, PeakMemory
from kljudge_jax.records import Count, Record

SCHEMA = 1
KIND = "bench"

Positions = Annotated[int, msgspec.Meta(ge=1)]


class Spread(Record, frozen=True, kw_only=True):
    """The range of samples."""

    low: float
    high: float
    rounds: Count


class Seconds(Spread, frozen=True, kw_only=True):
    """A time."""

    seconds: float


class Ratio(Spread, frozen=True, kw_only=True):
    """A ratio of two samples of one round."""

    ratio: float


class Rate(Spread, frozen=True, kw_only=True):
    """Tokens per second."""

    tokens_per_second: float


class BestLength(Spread, frozen=True, kw_only=True):
    """The draft length that would have been best, by the times of single rounds."""

    draft_length: float


class Timed(Seconds, frozen=True, kw_only=True):
    """The time of one repetition, how many a sample is the mean of, and what compilation took."""

    repetitions: Count
    compile_seconds: float


class Pass(Timed, frozen=True, kw_only=True):
    """The time of a pass, and what it reads and computes; the latter is None of a model of another's.

    Attributes:
      bandwidth_share, flops_share: of what the device reached in the same run.
      floor_seconds: the least that the work can take at what the device reached.
    """

    bytes: Count | None = None
    bytes_per_second: float | None = None
    bandwidth_share: float | None = None
    flops: float | None = None
    flops_per_second: float | None = None
    flops_share: float | None = None
    floor_seconds: float | None = None


class Draft(Pass, frozen=True, kw_only=True):
    """A draft of K tokens, one step of it, and that step in passes of plain decoding."""

    step: Timed
    step_x_plain_pass: Ratio


class Prompts(Timed, frozen=True, kw_only=True):
    """Consuming the prompts of a batch size: `n` of them, of so many tokens in all."""

    n: Count
    tokens: Count
    tokens_per_second: float


class Read(Timed, frozen=True, kw_only=True):
    """A plain read of a model's matrices."""

    bytes: Count
    bytes_per_second: float


class SquareProduct(Timed, frozen=True, kw_only=True):
    """A product of two square matrices of `size` rows."""

    size: Count
    flops_per_second: float


class Limits(Record, frozen=True, kw_only=True):
    """What the device reached in the same run; 0.1.0 timed no empty call."""

    read: dict[str, Read]
    matmul: SquareProduct
    empty_call: Timed | None = None


class Part(Seconds, frozen=True, kw_only=True):
    """A part of a cycle, its share, and how far it is from its floor, where it has one."""

    part: str
    share: float
    floor_seconds: float | None
    x_floor: float | None


class CostFigures(Record, frozen=True, kw_only=True):
    """What the cost model says of a rule beside what was measured.

    Attributes:
      acceptance_rate: of a tested draft token. acceptance_length: tokens per cycle at that rate.
      tokens_per_second, measured_tokens_per_second, error: predicted, measured, and their ratio less 1.
      recommended_draft_length, best_draft_lengths, advice, by_draft_length: of a rule that drafts; no length is
        recommended where `advice` says why.
    """

    acceptance_rate: float
    acceptance_length: float
    draft_step_seconds: float
    pass_seconds: float
    tokens_per_second: float
    measured_tokens_per_second: float
    error: float
    recommended_draft_length: Count | None = None
    best_draft_lengths: BestLength | None = None
    advice: str | None = None
    by_draft_length: tuple[float, ...] = ()


class RuleFigures(Rate, frozen=True, kw_only=True):
    """A rule at one batch size; its rate is that of whole answers, prompts and text included.

    Attributes:
      speed: how many times the rate of plain decoding; None of that itself.
      decoding: the rate without prompts.
      occupancy: the share of row-cycles that went into answers.
      cycle, sum_of_parts, cycle_over_parts: one cycle, its parts one by one, and the ratio of the two.
      profile: where a cycle goes.
      model: None where nothing can be compared.
    """

    rule: str
    draft_length: Count | str
    speed: Ratio | None
    decoding: Rate
    tokens: Count
    cycles: Count
    mean_acceptance_length: float
    occupancy: float
    cycle: Timed
    sum_of_parts: Seconds
    cycle_over_parts: Ratio
    compile_seconds: float
    profile: tuple[Part, ...]
    model: CostFigures | None
    failed: Count


class BatchFigures(Record, frozen=True, kw_only=True):
    """One batch size: so many slots of the cache a row, passes by the positions they score, rules.

    Attributes:
      observe: what a head makes of the target's states of a pass over a draft, once a cycle; None of other drafts.

    Raises:
      ValueError: there is no pass over one position.
    """

    batch: Count
    capacity: Count
    prompts: Prompts
    draft: Draft | None
    observe: Pass | None = None
    target_pass: dict[Positions, Pass]
    rules: tuple[RuleFigures, ...]

    def __post_init__(self) -> None:
        if 1 not in self.target_pass:
            raise ValueError("target_pass has no pass over 1 position")


class BenchModel(Record, frozen=True, kw_only=True):
    """A model: what it is called, its family, the numbers of its shape, and its size."""

    name: str
    family: str
    shape: dict[str, Any]
    parameters: Count
    bytes: Count


class BenchPlan(DecodingRecord, frozen=True, kw_only=True):
    """What was asked: rules, batch sizes, rounds, and how answers are decoded."""

    rules: tuple[str, ...]
    batches: tuple[Count, ...]
    rounds: Count
    draft_length: Count | str


class BenchFigures(Record, frozen=True, kw_only=True):
    """Everything a bench measured, and what made it (`bench.json`).

    Attributes:
      found_compiled: programs that were found compiled on disk.
      load_average: of the machine, before and after; None where it does not say.
    """

    schema: Literal[1] = 1
    kind: Literal["bench"] = "bench"
    command: str
    machine: Machine
    task: str
    models: dict[str, BenchModel]
    dtype: str
    plan: BenchPlan
    limits: Limits
    batches: tuple[BatchFigures, ...]
    found_compiled: Count
    peak_memory: PeakMemory
    load_average: tuple[float | None, ...] = ()

"""Tests a relaxed rule's thresholds from the strictest on, and promises a budget as far as the answers allow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from msgspec import structs

from kljudge_jax import records
from kljudge_jax.evaluation.calibration.target_answers import TargetAnswers
from kljudge_jax.evaluation.sweep import run as sweep
from kljudge_jax.evaluation.sweep.records import SweepPlan
from kljudge_jax.evaluation.sweep.run import Cell
from kljudge_jax.evaluation.sweep.summary import summarise
from kljudge_jax.judges.calibration import (
    Outcome,
    fixed_sequence,
    loss_interval,
    prompts_needed,
    smallest_set,
    upper_bound,
)
from kljudge_jax.machine import Machine, describe_machine
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.records import Count, Record
from kljudge_jax.results_folder import results_folder
from kljudge_jax.tasks.base import Task

PLAIN = Cell("none", 0)


@dataclasses.dataclass(frozen=True)
class Plan(sweep.Plan):
    """What a calibration runs. `cells` are plain decoding and then the thresholds, strictest first.

    It is all fixed before the first answer: thresholds, budgets or further prompts that are chosen after a look at the
    answers are outside the promise, so a folder holds one plan.

    Attributes:
      budget: the loss that may be promised, a share.
      delta: the risk that the promise is broken.
      without_answers: the loss is disagreement with the target's own answers.
    """

    budget: float = 0.01
    delta: float = 0.05
    without_answers: bool = False

    @property
    def thresholds(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell != PLAIN)

    @property
    def smallest_n(self) -> int:
        """The fewest prompts on which the budget could be promised at all."""
        return smallest_set(self.budget, self.delta, paired=not self.without_answers)


class Compared(Record, frozen=True, kw_only=True):
    """A threshold beside plain decoding, over the same problems.

    Attributes:
      rule: its spec string.
      outcome: what it did to the answers.
      right, plain_right: right answers of the rule and of plain decoding, or those that agree with the latter.
      mean_acceptance_length, mean_acceptance_length_interval: tokens committed in a cycle.
      failed: answers of the rule in which a model returned NaN or +inf.
      loss: the share of answers that it lost.
    """

    rule: str
    outcome: Outcome
    right: Count
    plain_right: Count
    mean_acceptance_length: float
    mean_acceptance_length_interval: tuple[float, float]
    failed: Count
    loss: float


class Tested(Compared, frozen=True, kw_only=True):
    """A threshold that was tested.

    Attributes:
      p_value: of the hypothesis that it loses the budget or more.
      upper_bound: what it loses at most, at 1 - delta, this threshold alone.
      promised: whether it passed, as all before it did.
    """

    p_value: float
    upper_bound: float
    promised: bool


class Check(Compared, frozen=True, kw_only=True):
    """What the chosen threshold costs on other problems: a measurement.

    Attributes:
      split: whose problems.
      interval: of the loss, 95 %.
    """

    split: str
    interval: tuple[float, float]


class CalibrationSummary(Record, frozen=True, kw_only=True):
    """What a calibration found (`calibration.json`).

    Attributes:
      command: the command line, word by word.
      machine, target: what it ran on, and the target's name.
      plan: what was asked.
      smallest_n: the fewest prompts on which the budget could be promised.
      tested: the thresholds, from strict to relaxed.
      threshold, verifier: what is promised; None and "exact" where nothing is.
      prompts_needed: about how many prompts would do for the threshold that failed.
      check: what the chosen threshold costs on other problems, where that was measured.
    """

    schema: Literal[1] = 1
    kind: Literal["calibrate"] = "calibrate"
    command: tuple[str, ...]
    machine: Machine
    target: str
    plan: SweepPlan
    smallest_n: Count
    tested: tuple[Tested, ...]
    threshold: float | None
    verifier: str
    prompts_needed: Count | None
    check: Check | None


def calibrate(
    pair: ModelPair, task: Task, plan: Plan, folder: str | Path, report: Callable[[str], None] = lambda line: None
) -> list[Tested]:
    """Answers the problems plainly and at one threshold after another, up to the first that cannot be promised.

    Answers are kept in `folder` as `run_sweep` keeps them, so a run that was killed goes on.

    Raises:
      InputError: the folder holds another plan, pair or task.
    """
    compared = _compare_each(pair, task, plan, folder, report)
    seen: list[Compared] = []

    def outcomes():
        for one in compared:
            seen.append(one)
            yield one.outcome

    tested = []
    for p in fixed_sequence(outcomes(), plan.budget, plan.delta):
        bound = upper_bound(seen[-1].outcome, plan.delta)
        tested.append(Tested(**structs.asdict(seen[-1]), p_value=p, upper_bound=bound, promised=p <= plan.delta))
    return tested


def chosen(tested: Sequence[Tested]) -> Tested | None:
    """The most relaxed threshold that is promised."""
    promised = [one for one in tested if one.promised]
    return promised[-1] if promised else None


def check(
    pair: ModelPair,
    task: Task,
    plan: Plan,
    one: Tested,
    n: int,
    split: str,
    folder: str | Path,
    report: Callable[[str], None] = lambda line: None,
) -> Check:
    """What the chosen threshold costs on `n` problems of another split, answered in a folder inside `folder`."""
    cell = next(cell for cell in plan.thresholds if cell.rule == one.rule)
    fresh = dataclasses.replace(plan, cells=(PLAIN, cell), n=n, split=split)
    (again,) = _compare_each(pair, task, fresh, Path(folder) / f"check-{split}-{n}", report)
    return Check(**structs.asdict(again), split=split, interval=loss_interval(again.outcome))


def summary(
    pair_name: str, plan: Plan, tested: Sequence[Tested], command: Sequence[str], checked: Check | None
) -> CalibrationSummary:
    """Everything that `calibration.json` holds."""
    best = chosen(tested)
    last = tested[-1] if tested else None
    return CalibrationSummary(
        command=tuple(command),
        machine=describe_machine(),
        target=pair_name,
        plan=plan.to_record(),
        smallest_n=plan.smallest_n,
        tested=tuple(tested),
        threshold=None if best is None else float(re.split("[:,=]", best.rule)[-1]),
        verifier="exact" if best is None else best.rule,
        prompts_needed=needed(plan, last) if last is not None and not last.promised else None,
        check=checked,
    )


def needed(plan: Plan, one: Tested) -> int | None:
    """About how many prompts would do for a threshold that failed, if they went like these."""
    return prompts_needed(one.outcome, plan.budget, plan.delta)


def write(folder: str | Path, found: CalibrationSummary) -> None:
    """Writes `calibration.json`. Raises `InputError` if there can be no such folder."""
    records.write(results_folder(folder) / "calibration.json", found)


def _compare_each(pair, task, plan, folder, report) -> Iterator[Compared]:
    """Every threshold beside plain decoding; answered when it is asked for."""
    task = TargetAnswers(task) if plan.without_answers else task
    answered = sweep.run_sweep(pair, task, plan, folder, report, cells=[PLAIN])
    plain = {record.problem: record.right for record in answered if record.rule == PLAIN.rule}
    if plan.without_answers:
        task.learn(answered)
    for cell in plan.thresholds:
        answered = sweep.run_sweep(pair, task, plan, folder, report, cells=[cell])
        answers = {record.problem: record for record in answered if record.rule == cell.rule}
        outcome = Outcome.of(list(plain.values()), [answers[problem].right for problem in plain])
        (row,) = summarise(list(answers.values()))
        outcome = dataclasses.replace(outcome, won=None) if plan.without_answers else outcome
        yield Compared(
            rule=cell.rule,
            outcome=outcome,
            right=row.right,
            plain_right=sum(plain.values()),
            mean_acceptance_length=row.mean_acceptance_length,
            mean_acceptance_length_interval=row.mean_acceptance_length_interval,
            failed=row.failed,
            loss=outcome.loss,
        )

"""The public call `calibrate`: a relaxed rule's threshold from a budget, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.calibration import run as calibrations
from kljudge_jax.evaluation.calibration import text as calibration_text
from kljudge_jax.evaluation.calibration.run import Check, Plan, Tested
from kljudge_jax.evaluation.sweep.run import grid
from kljudge_jax.generation.config import DecodingConfig, DecodingFields, configured
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.results_folder import folder_or_temporary
from kljudge_jax.tasks.base import Task
from kljudge_jax.verification.specs import threshold_specs


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration promises; it prints its table and its verdict.

    Attributes:
      target: the target's name.
      plan: what was asked for.
      tested: the thresholds, from strict to relaxed, up to the first that cannot be promised; none if the prompts are
        too few for the budget.
      checked: what the chosen one costs on other problems, where that was measured.
    """

    target: str
    plan: Plan
    tested: Sequence[Tested] = ()
    checked: Check | None = None

    @property
    def verifier(self) -> str:
        """The rule to decode by: that of the most relaxed threshold that is promised, else "exact"."""
        best = calibrations.chosen(self.tested)
        return "exact" if best is None else best.rule

    @property
    def failed(self) -> int:
        """Answers in which a model returned NaN or +inf."""
        return sum(one.failed for one in [*self.tested, *([self.checked] if self.checked else [])])

    def __str__(self) -> str:
        verdict = calibration_text.verdict(self.plan, self.tested)
        if not self.tested:
            return f"{calibration_text.too_few(self.plan)}\n\n{verdict}"
        checked = f"\n{calibration_text.told(self.checked)}" if self.checked else ""
        return f"{calibration_text.table(self.plan, self.tested)}\n{verdict}{checked}"

    def to_dict(self) -> dict[str, Any]:
        """What `calibration.json` holds, as plain dicts, lists, strings and numbers."""
        return calibrations.summary(self.target, self.plan, self.tested, (), self.checked).to_dict()

    def save(self, folder: str | Path, command: Sequence[str] = ("kljudge_jax.calibrate",)) -> None:
        """Writes `calibration.json`, unless nothing was tested and the folder holds another calibration.

        Raises:
          InputError: there can be no such folder.
        """
        if self.tested or not (Path(folder) / "plan.json").exists():
            found = calibrations.summary(self.target, self.plan, self.tested, command, self.checked)
            calibrations.write(folder, found)


def calibrate(
    pair: ModelPair,
    task: Task,
    rule: str = "kl",
    thresholds: Sequence[float | str] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
    *,
    budget: float = 1.0,
    delta: float = 0.05,
    without_answers: bool = False,
    n: int = 1000,
    split: str = "validation",
    check_n: int = 0,
    check_split: str = "test",
    folder: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    config: DecodingConfig | None = None,
    **decoding: Unpack[DecodingFields],
) -> Calibration:
    """Chooses a threshold that, but for a risk of `delta`, loses at most `budget` points against the target's answers.

    Args:
      pair: the models.
      task: prompts from the source that the promise is for.
      rule: a relaxed rule's spec string, less its threshold: "kl", "fuzzy:js".
      thresholds: from strict to relaxed; the first that fails ends the search.
      budget: the most that may be lost, in points of 100.
      delta: the risk of losing more.
      without_answers: loss is not accuracy but disagreement with the target's own answers.
      n: prompts to choose on.
      split: of the task, to choose on.
      check_n: prompts to measure the chosen threshold on; 0 is none.
      check_split: of the task, to measure on.
      folder: where the answers and `calibration.json` go; a call that finds answers of the same calibration there goes
        on after them. None keeps nothing.
      report: told of every batch.
      config: how they are answered; None is `DecodingConfig(batch=8)`. Its seed chooses the prompts too.
      **decoding: fields of the configuration, such as `draft_length=4`, in place of those of `config`.

    Raises:
      InputError: a rule, a threshold or a number that cannot be, or a folder that holds another calibration.
    """
    config = configured("calibrate", config, decoding)
    plan = planned(rule, thresholds, budget, delta, without_answers, n, split, check_n, check_split, config)
    with folder_or_temporary(folder) as place:
        found = calibrated(pair, task, plan, place, check_n, check_split, report)
        if folder is not None:
            found.save(place)
    return found


def planned(
    rule: str,
    thresholds: Sequence[float | str],
    budget: float,
    delta: float,
    without_answers: bool,
    n: int,
    split: str,
    check_n: int,
    check_split: str,
    config: DecodingConfig,
) -> Plan:
    """The plan of a calibration, checked; arguments and errors are those of `calibrate`."""
    if not 0 < budget < 100:
        raise InputError(f"budget is in points, above 0 and below 100, got {budget:g}")
    if not 0 < delta < 1:
        raise InputError(f"delta is a risk above 0 and below 1, such as 0.05, got {delta:g}")
    if n < 1 or check_n < 0:
        raise InputError("n starts at 1, check_n at 0")
    if check_n and split in ("all", check_split):
        raise InputError("check_split has to name another part of the task than split, or it would measure nothing")
    rules = threshold_specs(rule, [str(one) for one in thresholds], config.greedy)
    cells = (calibrations.PLAIN, *grid(rules, [config.draft_length]))
    return Plan(cells, n, split, config, budget / 100, delta, without_answers)


def calibrated(
    pair: ModelPair,
    task: Task,
    plan: Plan,
    folder: str | Path,
    check_n: int,
    check_split: str,
    report: Callable[[str], None],
) -> Calibration:
    """What a plan finds; nothing is answered where its prompts are too few."""
    if plan.n < plan.smallest_n:
        return Calibration(pair.target_name, plan)
    tested = calibrations.calibrate(pair, task, plan, folder, report)
    best = calibrations.chosen(tested)
    checked = None
    if best is not None and check_n:
        checked = calibrations.check(pair, task, plan, best, check_n, check_split, folder, report)
    return Calibration(pair.target_name, plan, tested, checked)

"""The report of a sweep: one page that needs nothing but itself, and the same as Markdown, CSV, JSON and PNG."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kljudge_jax.evaluation.report.pareto import draw_positions, draw_tradeoff, svg
from kljudge_jax.evaluation.report.token_page import Answer, render
from kljudge_jax.evaluation.sweep.claim import read_claim
from kljudge_jax.evaluation.sweep.records import SweepRow, SweepSummary, TaskRow
from kljudge_jax.evaluation.sweep.summary import csv_table, markdown_table, note, table
from kljudge_jax.generation.display import scrolling_html
from kljudge_jax.machine import Machine
from kljudge_jax.records import named, write, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTES = (
    "Intervals are 95 %: Wilson's for accuracy, Agresti and Min's for the difference from plain decoding, Student's "
    "with the jackknife for the acceptance length (over answers) and for speed (over turns, in pairs with plain "
    "decoding; none below 4). p is McNemar's, of the same problems under plain decoding. The verdict corrects it for "
    "the number of rules on a task (Holm): noise means that these problems cannot tell the rule from plain decoding, "
    "not that it loses nothing: the interval of the difference says how much a loss could be. tokens/s are those of "
    "the sweep's slots, compilation left out."
)


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a sweep found on one task; a notebook shows it.

    Attributes:
      name: the task's.
      rows: one a cell, as `summarise` makes them.
      examples: prompts, each with its answers under the rules.
      greedy: a lossless rule should have written the plain answers.
    """

    name: str
    rows: Sequence[SweepRow]
    examples: Sequence[tuple[str, Sequence[Answer]]] = ()
    greedy: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Name and rows as plain dicts, lists, strings and numbers."""
        return {"name": self.name, "rows": [row.to_dict() for row in self.rows]}

    def tradeoff(self) -> Figure:
        """Accuracy against mean acceptance length, and against speed."""
        return draw_tradeoff([(self.name, self.rows)])

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(line)}</li>" for line in findings(self.rows, self.greedy))
        rows, examples = scrolling_html(table(self.rows, self.greedy)), render("examples.html", examples=self.examples)
        under = note(self.rows, self.greedy)
        marked = f"<p>{html.escape(under)}</p>" if under else ""
        return f"<ul>{said}</ul>{svg(self.tradeoff())}{rows}{marked}{examples}"


def read_metadata(folders: Sequence[str | Path], command: str) -> SweepSummary:
    """The summary of a sweep from the `plan.json` of its parts, which differ in task and seed only; without rows."""
    claims = [read_claim(Path(folder) / "plan.json") for folder in folders]
    first = claims[0]
    seeds = tuple(dict.fromkeys(claim.plan.seed for claim in claims))
    every = [machine for claim in claims for machine in (claim.machine, *claim.later_machines)]
    later = [machine for i, machine in enumerate(every) if machine not in every[:i]][1:]
    return SweepSummary(
        command=command,
        target=first.target,
        draft=first.draft,
        dtype=first.dtype,
        plan=msgspec.structs.replace(first.plan, seeds=seeds),
        machine=first.machine,
        later_machines=tuple(later),
        cells=(),
    )


def write_report(folder: str | Path, results: Sequence[TaskResult], metadata: SweepSummary) -> list[Path]:
    """Writes `report.html`, `report.md`, `summary.csv`, `summary.json`, `tradeoff.png` and `positions.png`."""
    folder = Path(folder)
    tasks = [(result.name, result.rows) for result in results]
    cells = tuple(TaskRow(task=name, **msgspec.structs.asdict(row)) for name, rows in tasks for row in rows)
    tradeoff, positions = draw_tradeoff(tasks), draw_positions(tasks)
    texts = {
        "report.html": render(
            "sweep.html",
            heading="Judge decoding: a sweep",
            about=_about(metadata),
            results=results,
            examples=[example for result in results for example in result.examples],
            findings=findings,
            cells=table,
            note=note,
            tradeoff=svg(tradeoff),
            positions=svg(positions),
            notes=NOTES,
            foot=metadata.command,
        ),
        "report.md": _markdown(results, metadata),
        "summary.csv": csv_table(cells),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write(folder / "summary.json", msgspec.structs.replace(metadata, cells=cells))
    for name, figure in (("tradeoff.png", tradeoff), ("positions.png", positions)):
        with named(folder / name) as picture:
            figure.savefig(picture)
    return [folder / name for name in (*texts, "summary.json", "tradeoff.png", "positions.png")]


def findings(rows: Sequence[SweepRow], greedy: bool = True) -> list[str]:
    """What the figures say, in sentences; `greedy` says whether a lossless rule should write the plain answers."""
    compared = [row for row in rows if row.verdict is not None]
    if not compared:
        return ["No plain decoding in this sweep (rule none): accuracy and speed are compared with nothing."]
    worse = [row for row in compared if row.verdict == "worse"]
    doubtful = [row for row in compared if row.verdict == "doubtful"]
    held = [row for row in compared if row.verdict not in ("worse", "doubtful")]
    lines = []
    if held:
        best = max(held, key=lambda row: row.mean_acceptance_length)
        low = 100 * best.difference_interval[0] if best.difference_interval is not None else 0.0
        lines.append(
            f"Longest mean acceptance length without a loss that {best.n} problems can show: {_name(best, rows)}, "
            f"{best.mean_acceptance_length:.2f}; a loss of up to {max(0.0, -low):.1f} points may hide in the noise."
        )
        timed = [(row.speed, i) for i, row in enumerate(held) if row.speed is not None]
        if timed:
            speed, i = max(timed, key=lambda one: one[0])
            fastest = held[i]
            ends = fastest.speed_interval
            faster = speed > 1
            what = "Fastest of those here" if faster else "None of those is faster than plain decoding here"
            lines.append(
                f"{what}: {_name(fastest, rows)}, {speed:.2f} times plain decoding"
                + (f" ({ends[0]:.2f} to {ends[1]:.2f})." if ends is not None else " (too few turns for an interval).")
            )
    if worse:
        lines.append(f"Worse than plain decoding: {', '.join(_name(row, rows) for row in worse)}.")
    if doubtful:
        lines.append(
            f"Doubtful: {', '.join(_name(row, rows) for row in doubtful)}; alone, the loss would be shown (p < 0.05), "
            "and is not once p is corrected for so many rules."
        )
    changed = [row for row in compared if greedy and row.rule == "exact" and (row.same_text or 0) < row.n]
    lines += [f"{_name(row, rows)} wrote {row.same_text} of {row.n} plain answers token for token." for row in changed]
    return lines


def _name(row: SweepRow, rows: Sequence[SweepRow]) -> str:
    lengths = {other.draft_length for other in rows} - {0}  # plain decoding and the draft alone have none
    return row.rule + (f" @ {row.draft_length}" if row.draft_length and len(lengths) > 1 else "")


def _about(metadata: SweepSummary) -> list[str]:
    plan = metadata.plan
    seeds = ("seed " if len(plan.seeds) == 1 else "seeds ") + ", ".join(map(str, plan.seeds))
    lengths = dict.fromkeys(cell.draft_length for cell in plan.cells if cell.draft_length)
    drafted = f"draft length {' and '.join(map(str, lengths))}, " if lengths else ""
    how = "greedy" if metadata.plan.greedy else f"temperature {plan.temperature:g}"
    return [
        f"Target {metadata.target}, draft {metadata.draft or 'none'}, {metadata.dtype}, {how}, {drafted}at most "
        f"{plan.max_new_tokens} new tokens, {plan.batch} answers side by side, {plan.split} split, {seeds}.",
        _measured_on(metadata.machine),
        *(f"Gone on with: {_measured_on(machine)}" for machine in metadata.later_machines),
    ]


def _measured_on(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{machine.date}, {machine.processor}, {machine.cores} cores, {machine.devices} x "
        f"{machine.device}, {versions}, Python {machine.python}."
    )


def _markdown(results: Sequence[TaskResult], metadata: SweepSummary) -> str:
    lines = ["# Judge decoding: a sweep", "", *_about(metadata), "", f"    {metadata.command}", ""]
    for result in results:
        lines += [f"## {result.name}", "", *(f"- {line}" for line in findings(result.rows, result.greedy)), ""]
        lines += [markdown_table(result.rows, result.greedy)]
    return "\n".join([*lines, "![what is gained, what is lost](tradeoff.png)", "", NOTES, ""])

"""The report of a sweep: one page that needs nothing but itself, and the same as Markdown, CSV, JSON and PNG."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kljudge_jax.evaluation.report.pareto import draw_positions, draw_tradeoff, svg
from kljudge_jax.evaluation.report.token_page import Answer, render
from kljudge_jax.evaluation.sweep.run import KIND, SCHEMA
from kljudge_jax.evaluation.sweep.summary import csv_table, markdown_table, table
from kljudge_jax.generation.display import scrolling_html

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
    rows: Sequence[dict]
    examples: Sequence[tuple[str, Sequence[Answer]]] = ()
    greedy: bool = True

    def tradeoff(self) -> Figure:
        """Accuracy against mean acceptance length, and against speed."""
        return draw_tradeoff([(self.name, self.rows)])

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(line)}</li>" for line in findings(self.rows, self.greedy))
        rows, examples = scrolling_html(table(self.rows)), render("examples.html", examples=self.examples)
        return f"<ul>{said}</ul>{svg(self.tradeoff())}{rows}{examples}"


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """How and on what the results were measured.

    Attributes:
      command: the command line.
      target: its name.
      draft: its name; None without one.
      dtype: of the weights.
      plan: as `sweep.Plan` in JSON.
      machine: what `describe_machine` said.
      later_machines: the same of runs that went on elsewhere or another day.
    """

    command: str
    target: str
    draft: str | None
    dtype: str
    plan: dict
    machine: dict
    later_machines: Sequence[dict] = ()

    @property
    def greedy(self) -> bool:
        return self.plan["temperature"] == 0


def read_metadata(folders: Sequence[str | Path], command: str) -> RunMetadata:
    """The metadata of a sweep from the `plan.json` of its parts, which differ in task and seed only."""
    claims = [json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8")) for folder in folders]
    first = claims[0]
    seeds = list(dict.fromkeys(claim["plan"]["seed"] for claim in claims))
    plan = first["plan"] | {"seeds": seeds}
    every = [machine for claim in claims for machine in (claim["machine"], *claim.get("later_machines", ()))]
    later = [machine for i, machine in enumerate(every) if machine not in every[:i]][1:]
    return RunMetadata(command, first["target"], first["draft"], first["dtype"], plan, first["machine"], later)


def write_report(folder: str | Path, results: Sequence[TaskResult], metadata: RunMetadata) -> list[Path]:
    """Writes `report.html`, `report.md`, `summary.csv`, `summary.json`, `tradeoff.png` and `positions.png`."""
    folder = Path(folder)
    tasks = [(result.name, result.rows) for result in results]
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
            tradeoff=svg(tradeoff),
            positions=svg(positions),
            notes=NOTES,
            foot=metadata.command,
        ),
        "report.md": _markdown(results, metadata),
        "summary.csv": csv_table([{"task": name} | row for name, rows in tasks for row in rows]),
        "summary.json": _json(results, metadata),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, figure in (("tradeoff.png", tradeoff), ("positions.png", positions)):
        figure.savefig(folder / name)
    return [folder / name for name in (*texts, "tradeoff.png", "positions.png")]


def findings(rows: Sequence[dict], greedy: bool = True) -> list[str]:
    """What the figures say, in sentences; `greedy` says whether a lossless rule should write the plain answers."""
    compared = [row for row in rows if row["verdict"] is not None]
    if not compared:
        return ["No plain decoding in this sweep (rule none): accuracy and speed are compared with nothing."]
    worse = [row for row in compared if row["verdict"] == "worse"]
    doubtful = [row for row in compared if row["verdict"] == "doubtful"]
    held = [row for row in compared if row["verdict"] not in ("worse", "doubtful")]
    lines = []
    if held:
        best = max(held, key=lambda row: row["mean_acceptance_length"])
        low = 100 * best["difference_interval"][0]
        lines.append(
            f"Longest mean acceptance length without a loss that {best['n']} problems can show: {_name(best, rows)}, "
            f"{best['mean_acceptance_length']:.2f}; a loss of up to {max(0.0, -low):.1f} points may hide in the noise."
        )
        timed = [row for row in held if row["speed"] is not None]
        if timed:
            fastest = max(timed, key=lambda row: row["speed"])
            low, high = fastest["speed_interval"] or (None, None)
            faster = fastest["speed"] > 1
            what = "Fastest of those here" if faster else "None of those is faster than plain decoding here"
            lines.append(
                f"{what}: {_name(fastest, rows)}, {fastest['speed']:.2f} times plain decoding"
                + (f" ({low:.2f} to {high:.2f})." if low is not None else " (too few turns for an interval).")
            )
    if worse:
        lines.append(f"Worse than plain decoding: {', '.join(_name(row, rows) for row in worse)}.")
    if doubtful:
        lines.append(
            f"Doubtful: {', '.join(_name(row, rows) for row in doubtful)}; alone, the loss would be shown (p < 0.05), "
            "and is not once p is corrected for so many rules."
        )
    changed = [row for row in compared if greedy and row["rule"] == "exact" and row["same_text"] < row["n"]]
    lines += [
        f"{_name(row, rows)} wrote {row['same_text']} of {row['n']} plain answers token for token." for row in changed
    ]
    return lines


def _name(row: dict, rows: Sequence[dict]) -> str:
    lengths = {other["draft_length"] for other in rows} - {0}  # plain decoding and the draft alone have none
    return row["rule"] + (f" @ {row['draft_length']}" if row["draft_length"] and len(lengths) > 1 else "")


def _about(metadata: RunMetadata) -> list[str]:
    plan = metadata.plan
    seeds = ("seed " if len(plan["seeds"]) == 1 else "seeds ") + ", ".join(map(str, plan["seeds"]))
    lengths = dict.fromkeys(cell["draft_length"] for cell in plan["cells"] if cell["draft_length"])
    drafted = f"draft length {' and '.join(map(str, lengths))}, " if lengths else ""
    how = "greedy" if metadata.greedy else f"temperature {plan['temperature']:g}"
    return [
        f"Target {metadata.target}, draft {metadata.draft or 'none'}, {metadata.dtype}, {how}, {drafted}at most "
        f"{plan['max_new_tokens']} new tokens, {plan['batch']} answers side by side, {plan['split']} split, {seeds}.",
        _measured_on(metadata.machine),
        *(f"Gone on with: {_measured_on(machine)}" for machine in metadata.later_machines),
    ]


def _measured_on(machine: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['devices']} x "
        f"{machine['device']}, {versions}, Python {machine['python']}."
    )


def _markdown(results: Sequence[TaskResult], metadata: RunMetadata) -> str:
    lines = ["# Judge decoding: a sweep", "", *_about(metadata), "", f"    {metadata.command}", ""]
    for result in results:
        lines += [f"## {result.name}", "", *(f"- {line}" for line in findings(result.rows, result.greedy)), ""]
        lines += [markdown_table(result.rows)]
    return "\n".join([*lines, "![what is gained, what is lost](tradeoff.png)", "", NOTES, ""])


def _json(results: Sequence[TaskResult], metadata: RunMetadata) -> str:
    cells = [{"task": result.name} | row for result in results for row in result.rows]
    found = {"schema": SCHEMA, "kind": KIND, **dataclasses.asdict(metadata), "cells": cells}
    return json.dumps(found, indent=2) + "\n"

"""The public call `compare`: results of several machines, benches or sweeps, in one table and one picture."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench import run as bench
from kljudge_jax.evaluation.bench.records import BenchFigures, BenchModel, BenchPlan, Pass
from kljudge_jax.evaluation.bench.table import machine_label, milliseconds, spread_of, title
from kljudge_jax.evaluation.report.pareto import svg
from kljudge_jax.evaluation.sweep import run as sweep
from kljudge_jax.evaluation.sweep.records import SweepPlan, SweepSummary
from kljudge_jax.generation.display import scrolling_html
from kljudge_jax.machine import is_busy
from kljudge_jax.records import convert, named, plain, read, write_text
from kljudge_jax.results_folder import results_folder
from kljudge_jax.text_table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Fields of a plan that are named where they say something.
_RARE = ("stop", "section_ids", "template_args", "seeds", "budget", "delta", "without_answers")


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of the picture: tokens per second and its range, of no width where none is known."""

    group: str
    speed: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Result:
    """One result file, read.

    Attributes:
      path: of the file.
      kind: "bench" or "sweep".
      label: the machine, in a few words.
      asked: what has to be the same for two results to be compared, by name.
      rows: cells of its lines in the table, by head.
      bars: of the picture.
      about: date, driver and versions, and whether the machine was busy.
    """

    path: str
    kind: str
    label: str
    asked: dict[str, Any]
    rows: list[dict[str, str]]
    bars: list[Bar]
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of several machines; a notebook shows their table and picture.

    Attributes:
      results: as they were read.
      notes: what each was asked that the first one was not; "" where nothing differs.
    """

    results: Sequence[Result]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Results and notes as plain dicts, lists, strings and numbers."""
        return plain(self)

    @property
    def names(self) -> list[str]:
        """A name a result: its machine, its folder where several have one machine, and a mark where it differs."""
        labels = [result.label for result in self.results]
        names = []
        for result, note in zip(self.results, self.notes, strict=True):
            twice = labels.count(result.label) > 1
            name = f"{result.label} ({PurePath(result.path).parent.name or result.path})" if twice else result.label
            names.append(name + (" [differs]" if note else ""))
        return names

    def table(self) -> list[list[str]]:
        """The results as cells of text, the head first."""
        heads = list(dict.fromkeys(head for result in self.results for row in result.rows for head in row))
        named = zip(self.results, self.names, strict=True)
        rows = [[name, *(row.get(head, "") for head in heads)] for result, name in named for row in result.rows]
        return [["result", *heads], *rows]

    def sources(self) -> list[str]:
        """What was measured, and where each result comes from and in what it differs."""
        first = self.results[0]
        asked = "; ".join(f"{name} {_short(value)}" for name, value in first.asked.items())
        return [f"{first.kind.capitalize()} of {asked}."] + [
            f"{name}: {result.path}"
            + (f", {result.about}" if result.about else "")
            + (f" (not comparable: {note})" if note else "")
            for result, name, note in zip(self.results, self.names, self.notes, strict=True)
        ]

    def markdown(self) -> str:
        """The table, and under it where each result comes from."""
        first, *others = self.sources()
        return "\n".join([markdown(self.table()), first, *(f"- {line}" for line in others)]) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes `compare.md` and `compare.png`, and returns the path of the picture.

        Raises:
          InputError: the folder cannot be made.
        """
        folder = results_folder(folder)
        write_text(folder / "compare.md", self.markdown())
        with named(folder / "compare.png") as picture:
            self.draw().savefig(picture)
        return folder / "compare.png"

    def _repr_html_(self) -> str:
        sources = "".join(f"<p>{html.escape(line)}</p>" for line in self.sources())
        return f"{scrolling_html(self.table())}{sources}{svg(self.draw())}"

    def draw(self) -> Figure:
        """The picture: tokens per second as bars, a group a rule, a colour a result."""
        import matplotlib
        from matplotlib.figure import Figure

        results = self.results
        groups = list(dict.fromkeys(bar.group for result in results for bar in result.bars))
        height = 0.8 / len(results)
        figure = Figure(figsize=(8.5, 1.4 + 0.32 * len(results) * len(groups) + 0.25 * len(results)), dpi=130,
                        layout="constrained")  # fmt: skip
        axes = figure.subplots()
        colours = matplotlib.color_sequences["tab10"]
        for i, (result, name) in enumerate(zip(results, self.names, strict=True)):
            bars = {bar.group: bar for bar in result.bars}
            here = [(place, bars[group]) for place, group in enumerate(groups) if group in bars]
            places = [place + (i - (len(results) - 1) / 2) * height for place, _ in here]
            speeds = [bar.speed for _, bar in here]
            errors = [
                [max(bar.speed - bar.low, 0.0) for _, bar in here],
                [max(bar.high - bar.speed, 0.0) for _, bar in here],
            ]
            drawn = axes.barh(places, speeds, 0.92 * height, color=colours[i % len(colours)], label=name)
            if any(any(side) for side in errors):
                axes.errorbar(speeds, places, xerr=errors, fmt="none", ecolor="#333", elinewidth=1, capsize=2)
            for box, (_, bar) in zip(drawn, here, strict=True):
                speed = f"{bar.speed:,.0f}" if bar.speed >= 100 else f"{bar.speed:.3g}"
                place = bar.high, box.get_y() + box.get_height() / 2
                axes.annotate(speed, place, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        spread = "median and 10 to 90 %" if results[0].kind == bench.KIND else "and 95 % where it is known"
        axes.set_xlabel(f"tokens per second, {spread}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", fontsize=8, frameon=False, ncols=1)
        return figure


def compare(*paths: str | Path, force: bool = False) -> Comparison:
    """Puts results of several machines side by side.

    Args:
      paths: `bench.json` files, or `summary.json` files of sweeps.
      force: compare what differs all the same, and mark it.

    Raises:
      InputError: a file is no result, or, unless `force`, another thing was measured.
    """
    if not paths:
        raise InputError("name at least one result: a bench.json, or the summary.json of a sweep")
    results = [read_result(path) for path in paths]
    return Comparison(results, differences(results, force))


def read_result(path: str | Path) -> Result:
    """Reads a `bench.json`, or a sweep's `summary.json`.

    Raises:
      InputError: the file cannot be read, is none of the two, or is of a schema that this version does not know.
    """
    path, advice = Path(path), "compare with the version that wrote it, or measure again"
    found = read(path, dict[str, Any], advice)
    if found.get("kind") == bench.KIND:
        return _of_bench(path, convert(found, BenchFigures, str(path), advice))
    if found.get("kind") == sweep.KIND:
        return _of_sweep(path, convert(found, SweepSummary, str(path), advice))
    raise InputError(f"{path} is no result of kljudge: give a bench.json, or the summary.json of a sweep")


def differences(results: Sequence[Result], force: bool = False) -> list[str]:
    """What each result was asked that the first one was not, one line each ("" where nothing differs).

    Raises:
      InputError: they are of two kinds; or, unless `force`, something differs.
    """
    first = results[0]
    notes = [""]
    for other in results[1:]:
        if other.kind != first.kind:
            raise InputError(f"{other.path} is a {other.kind} and {first.path} a {first.kind}: compare one kind")
        differing = [
            f"{name} {_short(other.asked.get(name))} and not {_short(first.asked.get(name))}"
            for name in first.asked | other.asked
            if other.asked.get(name) != first.asked.get(name)
        ]
        if differing and not force:
            raise InputError(
                f"{other.path} cannot be compared with {first.path}: its {', '.join(differing)}; --force does it all "
                "the same"
            )
        notes.append("; ".join(differing))
    return notes


def _of_bench(path: Path, found: BenchFigures) -> Result:
    plan = found.plan
    asked: dict[str, Any] = {name: _identity(model) for name, model in found.models.items()}
    asked |= {"dtype": found.dtype, "task": found.task}
    asked |= {name: value for name, value in _told(plan).items() if name != "rounds"}
    asked["prompts"] = [batch.prompts.n for batch in found.batches]
    rows, bars = [], []
    for batch in found.batches:
        passes = batch.target_pass
        widest = max(passes)
        for rule in batch.rules:
            plain, speed, model = rule.rule == bench.PLAIN, rule.speed, rule.model
            advised = model and model.recommended_draft_length
            rows.append(
                {
                    "batch": str(batch.batch),
                    "rule": title(rule),
                    "tokens/s": spread_of(rule, "tokens_per_second", ".1f"),
                    "speedup": spread_of(speed, "ratio", ".2f") if speed else "",
                    "mean acceptance length": f"{rule.mean_acceptance_length:.2f}",
                    "cycle, ms": milliseconds(rule.cycle),
                    "draft step, ms": "" if plain or not batch.draft else milliseconds(batch.draft.step),
                    "pass over 1, ms": milliseconds(passes[1]),
                    f"pass over {widest} / over 1": f"{passes[widest].seconds / max(passes[1].seconds, 1e-12):.2f}",
                    "GB/s (share)": _bandwidth(passes[1]),
                    "cost model error": f"{100 * model.error:+.0f} %" if model else "",
                    "advised draft length": "" if advised is None else str(advised),
                }
            )
            group = f"{title(rule)}, batch {batch.batch}"
            bars.append(Bar(group, rule.tokens_per_second, rule.low, rule.high))
    return Result(str(path), bench.KIND, machine_label(found.machine), asked, rows, bars, _about(found))


def _of_sweep(path: Path, found: SweepSummary) -> Result:
    asked: dict[str, Any] = {name: _base(getattr(found, name) or "none") for name in ("target", "draft")} | {
        "dtype": found.dtype
    }
    asked["tasks"] = list(dict.fromkeys(cell.task for cell in found.cells))
    asked |= {name: value for name, value in _told(found.plan).items() if name not in ("cells", "seed")}
    asked["cells"] = [title(cell) for cell in found.plan.cells]
    rows, bars = [], []
    for cell in found.cells:
        low, high = cell.accuracy_interval
        rows.append(
            {
                "task": cell.task,
                "rule": title(cell),
                "right": f"{cell.right} of {cell.n}",
                "95 %": f"{100 * low:.0f} to {100 * high:.0f}",
                "mean acceptance length": f"{cell.mean_acceptance_length:.2f}",
                "tokens/s": f"{cell.tokens_per_second:.1f}",
                "speedup": "" if cell.speed is None else f"{cell.speed:.2f}",
            }
        )
        name = title(cell) if len(asked["tasks"]) == 1 else f"{cell.task}: {title(cell)}"
        speed = cell.tokens_per_second
        bars.append(Bar(name, speed, *(cell.tokens_per_second_interval or (speed, speed))))
    return Result(str(path), sweep.KIND, machine_label(found.machine), asked, rows, bars, _about(found))


def _about(found: BenchFigures | SweepSummary) -> str:
    """When and with what a result was measured, as far as its file says."""
    machine = found.machine
    told = [machine.date, machine.driver and f"driver {machine.driver}"]
    told += [f"{name} {version}" for name, version in machine.versions.items()]
    told += [machine.python and f"Python {machine.python}"]
    loads = found.load_average if isinstance(found, BenchFigures) else ()
    if is_busy(loads, machine.cores):
        told.append(f"on a busy machine (load average {max((load for load in loads if load), default=0):.0f})")
    return ", ".join(one for one in told if one)


def _told(plan: BenchPlan | SweepPlan) -> dict[str, Any]:
    """What was asked, as plain data; nothing of what was left as it is by few."""
    return {name: value for name, value in plan.to_dict().items() if name not in _RARE or value not in (None, [], {})}


def _bandwidth(timing: Pass) -> str:
    """Bytes per second and their share of what the device reached; nothing of another's model."""
    if timing.bytes_per_second is None or timing.bandwidth_share is None:
        return ""
    return f"{timing.bytes_per_second / 1e9:.1f} ({100 * timing.bandwidth_share:.0f} %)"


def _identity(model: BenchModel) -> dict[str, Any]:
    """What makes two models the same: name and shape, not where they lie."""
    return {"name": _base(model.name), "parameters": model.parameters, **model.shape}


def _base(name: str) -> str:
    return PurePath(name).name


def _short(value: Any) -> str:
    """A value in one line: a model by its name, anything else as JSON."""
    if isinstance(value, dict) and "name" in value:
        return f"{value['name']} ({value['parameters']} parameters)"
    return value if isinstance(value, str) else json.dumps(value)

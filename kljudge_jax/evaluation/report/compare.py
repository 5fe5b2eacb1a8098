"""Several results side by side: benches, or sweeps, of several machines in one table and one picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench import run as bench
from kljudge_jax.evaluation.bench.table import machine_label, milliseconds, ranged
from kljudge_jax.evaluation.sweep import run as sweep
from kljudge_jax.machine import is_busy
from kljudge_jax.models.json_file import read_json
from kljudge_jax.text_table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of the picture: tokens per second and, where it is known, its range."""

    group: str
    speed: float
    low: float | None = None
    high: float | None = None


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


def read_result(path: str | Path) -> Result:
    """Reads a `bench.json`, or a sweep's `summary.json`.

    Raises:
      InputError: the file cannot be read, is none of the two, or is of a schema that this version does not know.
    """
    path = Path(path)
    found = read_json(path)
    try:
        if found.get("kind") == bench.KIND:
            _check_schema(path, found, bench.SCHEMA)
            return _of_bench(path, found)
        if found.get("kind") == sweep.KIND:
            _check_schema(path, found, sweep.SCHEMA)
            return _of_sweep(path, found)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): measure it again") from error
    raise InputError(f"{path} is no result of kljudge: give a bench.json, or the summary.json of a sweep")


def compare(results: Sequence[Result], force: bool = False) -> list[str]:
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


def comparison_table(results: Sequence[Result], notes: Sequence[str]) -> list[list[str]]:
    """The results as cells of text, the head first; one that differs has a mark."""
    heads = list(dict.fromkeys(head for result in results for row in result.rows for head in row))
    named = zip(results, _names(results, notes), strict=True)
    return [["result", *heads]] + [
        [name, *(row.get(head, "") for head in heads)] for result, name in named for row in result.rows
    ]


def comparison_notes(results: Sequence[Result], notes: Sequence[str]) -> list[str]:
    """What was measured, and where each result comes from and in what it differs."""
    asked = "; ".join(f"{name} {_short(value)}" for name, value in results[0].asked.items())
    return [f"{results[0].kind.capitalize()} of {asked}."] + [
        f"{name}: {result.path}"
        + (f", {result.about}" if result.about else "")
        + (f" (not comparable: {note})" if note else "")
        for result, name, note in zip(results, _names(results, notes), notes, strict=True)
    ]


def comparison_markdown(results: Sequence[Result], notes: Sequence[str]) -> str:
    """The table; a result that differs has a mark, and the difference stands beneath."""
    first, *others = comparison_notes(results, notes)
    lines = [markdown(comparison_table(results, notes)), first, *(f"- {line}" for line in others)]
    return "\n".join(lines) + "\n"


def draw_comparison(results: Sequence[Result], notes: Sequence[str]) -> Figure:
    """The picture: tokens per second as bars, a group a rule, a colour a result."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(bar.group for result in results for bar in result.bars))
    height = 0.8 / len(results)
    figure = Figure(figsize=(8.5, 1.4 + 0.32 * len(results) * len(groups) + 0.25 * len(results)), dpi=130,
                    layout="constrained")  # fmt: skip
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = matplotlib.color_sequences["tab10"]
    for i, (result, name) in enumerate(zip(results, _names(results, notes), strict=True)):
        bars = {bar.group: bar for bar in result.bars}
        here = [(place, bars[group]) for place, group in enumerate(groups) if group in bars]
        places = [place + (i - (len(results) - 1) / 2) * height for place, _ in here]
        speeds = [bar.speed for _, bar in here]
        errors = [
            [bar.speed - (bar.speed if bar.low is None else bar.low) for _, bar in here],
            [(bar.speed if bar.high is None else bar.high) - bar.speed for _, bar in here],
        ]
        drawn = axes.barh(places, speeds, 0.92 * height, color=colours[i % len(colours)], label=name)
        known = any(any(side) for side in errors)
        if known:
            axes.errorbar(speeds, places, xerr=errors, fmt="none", ecolor="#333", elinewidth=1, capsize=2)
        for box, (_, bar) in zip(drawn, here, strict=True):
            speed = f"{bar.speed:,.0f}" if bar.speed >= 100 else f"{bar.speed:.3g}"
            place = max(bar.high or 0, bar.speed), box.get_y() + box.get_height() / 2
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


def _of_bench(path: Path, found: dict[str, Any]) -> Result:
    plan = found["plan"]
    asked: dict[str, Any] = {name: _identity(model) for name, model in found["models"].items()}
    asked |= {"dtype": found["dtype"], "task": found["task"]}
    asked |= {name: value for name, value in plan.items() if name != "rounds"}
    asked["prompts"] = [batch["prompts"]["n"] for batch in found["batches"]]
    rows, bars = [], []
    for batch in found["batches"]:
        passes = batch["target_pass"]
        widest = max(passes, key=int)
        for rule in batch["rules"]:
            plain, speed, model = rule["rule"] == bench.PLAIN, rule["speed"], rule["model"]
            rows.append(
                {
                    "batch": str(batch["batch"]),
                    "rule": _rule_name(rule),
                    "tokens/s": ranged(rule, "tokens_per_second", ".1f"),
                    "speedup": ranged(speed, "ratio", ".2f") if speed else "",
                    "mean acceptance length": f"{rule['mean_acceptance_length']:.2f}",
                    "cycle, ms": milliseconds(rule["cycle"]),
                    "draft step, ms": "" if plain or not batch["draft"] else milliseconds(batch["draft"]["step"]),
                    "pass over 1, ms": milliseconds(passes["1"]),
                    f"pass over {widest} / over 1": f"{passes[widest]['seconds'] / passes['1']['seconds']:.2f}",
                    "GB/s (share)": (
                        f"{passes['1']['bytes_per_second'] / 1e9:.1f} ({100 * passes['1']['bandwidth_share']:.0f} %)"
                    ),
                    "cost model error": f"{100 * model['error']:+.0f} %" if model else "",
                    "advised draft length": _length((model or {}).get("recommended_draft_length")),
                }
            )
            group = f"{_rule_name(rule)}, batch {batch['batch']}"
            bars.append(Bar(group, rule["tokens_per_second"], rule["low"], rule["high"]))
    return Result(str(path), bench.KIND, machine_label(found["machine"]), asked, rows, bars, _about(found))


def _of_sweep(path: Path, found: dict[str, Any]) -> Result:
    asked = {name: _base(found[name] or "none") for name in ("target", "draft")} | {"dtype": found["dtype"]}
    asked["tasks"] = list(dict.fromkeys(cell["task"] for cell in found["cells"]))
    asked |= {name: value for name, value in found["plan"].items() if name not in ("cells", "seed")}
    asked["cells"] = [_rule_name(cell) for cell in found["plan"]["cells"]]
    rows, bars = [], []
    for cell in found["cells"]:
        low, high = cell["accuracy_interval"]
        rows.append(
            {
                "task": cell["task"],
                "rule": _rule_name(cell),
                "right": f"{cell['right']} of {cell['n']}",
                "95 %": f"{100 * low:.0f} to {100 * high:.0f}",
                "mean acceptance length": f"{cell['mean_acceptance_length']:.2f}",
                "tokens/s": f"{cell['tokens_per_second']:.1f}",
                "speedup": "" if cell["speed"] is None else f"{cell['speed']:.2f}",
            }
        )
        name = _rule_name(cell) if len(asked["tasks"]) == 1 else f"{cell['task']}: {_rule_name(cell)}"
        bars.append(Bar(name, cell["tokens_per_second"], *(cell["tokens_per_second_interval"] or ())))
    return Result(str(path), sweep.KIND, machine_label(found["machine"]), asked, rows, bars, _about(found))


def _about(found: dict[str, Any]) -> str:
    """When and with what a result was measured, as far as its file says."""
    machine = found["machine"]
    told = [machine.get("date"), machine.get("driver") and f"driver {machine['driver']}"]
    told += [f"{name} {version}" for name, version in machine.get("versions", {}).items()]
    told += [machine.get("python") and f"Python {machine['python']}"]
    loads = found.get("load_average", [])
    if is_busy(loads, machine["cores"]):
        told.append(f"on a busy machine (load average {max(load or 0 for load in loads):.0f})")
    return ", ".join(one for one in told if one)


def _length(advised: int | None) -> str:
    return "" if advised is None else str(advised)


def _check_schema(path: Path, found: dict[str, Any], known: int) -> None:
    if found.get("schema") != known:
        raise InputError(
            f"{path} is of schema {found.get('schema')!r}, and this version reads {known}: compare with the version "
            "that wrote it"
        )


def _identity(model: dict[str, Any]) -> dict[str, Any]:
    """What makes two models the same: name and shape, not where they lie."""
    return {"name": _base(model["name"]), "parameters": model["parameters"], **model["shape"]}


def _base(name: str) -> str:
    return PurePath(name).name


def _names(results: Sequence[Result], notes: Sequence[str]) -> list[str]:
    """A name a result: its machine, its folder where several have one machine, and a mark where it differs."""
    labels = [result.label for result in results]
    names = []
    for result, note in zip(results, notes, strict=True):
        twice = labels.count(result.label) > 1
        name = f"{result.label} ({PurePath(result.path).parent.name or result.path})" if twice else result.label
        names.append(name + (" [differs]" if note else ""))
    return names


def _rule_name(rule: dict[str, Any]) -> str:
    return "plain" if rule["rule"] == bench.PLAIN else f"{rule['rule']} @ {rule['draft_length']}"


def _short(value: Any) -> str:
    """A value in one line: a model by its name, anything else as JSON."""
    if isinstance(value, dict) and "name" in value:
        return f"{value['name']} ({value['parameters']} parameters)"
    return value if isinstance(value, str) else json.dumps(value)

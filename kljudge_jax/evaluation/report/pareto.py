"""Pictures of a sweep: what each rule gains against what it loses, and how deep into the draft it accepts."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kljudge_jax.evaluation.sweep.records import SweepRow
from kljudge_jax.spec import read_spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by shape as well as by colour; the headline rules keep theirs in every picture.
_COLOURS = {"exact": "#1b1b1b", "kl": "#d1560b", "judge": "#1f6fb2", "random": "#8a8a8a", "all": "#b5b5b5"}
_OTHER_COLOURS = ("#2e8b62", "#8e5bb5", "#c23b6b", "#7a6a1d", "#3fa7c4", "#a0522d", "#5b7d2a", "#d08ec0", "#4a4ab0")
_MARKERS = "osD^v<>PXph*8d"


def family(rule: str) -> str:
    """The line a rule's point lies on: its spec name and those of its parameters that are not numbers.

    `kl:0.1` and `kl:threshold=0.4` lie on one line, `kl:0.4,confidence=1.0` on another: without the mask it is another
    rule.
    """
    return _line_and_numbers(rule)[0]


def setting(rule: str) -> str:
    """What tells a rule's point from others on its line: 0.1 of `kl:0.1`, 2,0.5 of `thinking:k=2,delta=0.5`."""
    return _line_and_numbers(rule)[1]


def _line_and_numbers(rule: str) -> tuple[str, str]:
    name, items = read_spec(rule)
    kept, numbers = [], []
    for key, value, text in items:
        if key == "confidence" or not _is_number(value):
            kept.append(re.split(r"[/\\]", text.rstrip("/\\"))[-1])
        else:
            numbers.append(value)
    return name + (":" + ",".join(kept) if kept else ""), ",".join(numbers)


def draw_tradeoff(tasks: Sequence[tuple[str, Sequence[SweepRow]]]) -> Figure:
    """Accuracy against mean acceptance length, and against speed, one line a rule, with 95 % intervals.

    Args:
      tasks: the name of each and its rows, as `summarise` makes them; one line of panels a task.
    """
    from matplotlib.patches import Patch

    styles = _styles(tasks)
    figure = _figure(10.5, 4.3 * len(tasks) + 0.022 * 4.3 * len(styles))
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    for (name, rows), (by_length, by_speed) in zip(tasks, panels, strict=True):
        timed = all(row.speed is not None for row in rows)
        _tradeoff(by_length, rows, styles, "mean_acceptance_length")
        by_length.set(xlabel="mean acceptance length", ylabel=f"{name}: right, %")
        _tradeoff(by_speed, rows, styles, "speed" if timed else "tokens_per_second")
        by_speed.set_xlabel("tokens/s, times those of plain decoding" if timed else "tokens/s")
    _legend(figure, styles, Patch(color="#eeeeee", label="plain decoding, 95 %"))
    return figure


def draw_positions(tasks: Sequence[tuple[str, Sequence[SweepRow]]]) -> Figure:
    """The share of target passes that commit draft token 1, 2, ..., one line a rule and draft length."""
    styles = _styles(tasks)
    figure = _figure(10.5, 3.6 * -(-len(tasks) // 2) + 0.022 * 3.6 * len(styles))
    panels = figure.subplots(-(-len(tasks) // 2), 2, squeeze=False, sharey=True).flatten()
    for axes, task in itertools.zip_longest(panels, tasks):
        if task is None:
            axes.axis("off")
            continue
        seen: dict[str, int] = defaultdict(int)
        for row in task[1]:
            shares = row.acceptance_by_position
            if row.rule == "none" or not shares:
                continue
            style = styles[family(row.rule)]
            # Settings of one rule differ in how solid they are.
            alpha = max(1.0 - 0.3 * seen[family(row.rule)], 0.25)
            seen[family(row.rule)] += 1
            axes.plot(range(1, len(shares) + 1), shares, **style | {"markersize": 3, "alpha": alpha})
        axes.set(title=task[0], xlabel="draft token", ylim=(0, 1.02))
    panels[0].set_ylabel("share of passes that commit it")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, styles)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element, its letters kept as text."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kljudge"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _tradeoff(axes: Axes, rows: Sequence[SweepRow], styles: dict[str, dict], along: str) -> None:
    lines: dict[tuple, list[SweepRow]] = defaultdict(list)
    for row in rows:
        if row.rule == "none":
            low, high = (100 * share for share in row.accuracy_interval)
            axes.axhspan(low, high, color="#eeeeee", lw=0, zorder=0)
            axes.axhline(100 * row.accuracy, color="#999999", ls="--", lw=1, zorder=1)
        else:
            lines[family(row.rule), row.draft_length].append(row)
    lengths = Counter(name for name, _ in lines)
    for (name, length), points in lines.items():
        points = sorted(points, key=lambda row: getattr(row, along))
        xs, ys = [getattr(row, along) for row in points], [100 * row.accuracy for row in points]
        axes.plot(xs, ys, lw=1, zorder=3, **styles[name])
        bars = {"color": styles[name]["color"], "lw": 0.8, "alpha": 0.45, "zorder": 2}
        for x, y, row in zip(xs, ys, points, strict=True):
            axes.plot([x, x], [100 * share for share in row.accuracy_interval], **bars)
            interval = getattr(row, f"{along}_interval", None)
            if interval is not None:
                axes.plot(interval, [y, y], **bars)
            words = [setting(row.rule)] * (len(points) > 1) + [f"@ {length}"] * (lengths[name] > 1)
            axes.annotate(
                " ".join(words), (x, y), (3, 3), textcoords="offset points", fontsize=6.5, color=styles[name]["color"]
            )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)


def _styles(tasks: Sequence[tuple[str, Sequence[SweepRow]]]) -> dict[str, dict]:
    """Colour and marker of each line."""
    names = dict.fromkeys(family(row.rule) for _, rows in tasks for row in rows if row.rule != "none")
    others, markers = itertools.cycle(_OTHER_COLOURS), itertools.cycle(_MARKERS)
    styles = {}
    for name in names:
        kept = name.partition(":")[0] if name.startswith("judge") else name  # whatever folder its head lies in
        styles[name] = {"color": _COLOURS.get(kept) or next(others), "marker": next(markers), "markersize": 5}
    return styles


def _legend(figure: Figure, styles: dict[str, dict], *first) -> None:
    from matplotlib.lines import Line2D

    handles = [*first, *(Line2D([], [], label=name, lw=1, **style) for name, style in styles.items())]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

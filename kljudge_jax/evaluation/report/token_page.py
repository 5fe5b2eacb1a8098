"""An answer as a page and as a picture: each token coloured by its origin, with the divergence beneath it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from kljudge_jax.generation.detokenize import split
from kljudge_jax.generation.display import COLOURS, legend_html, marked_html, table_html
from kljudge_jax.generation.results import Generation
from kljudge_jax.records import named, write_text

_COLUMNS = 76  # characters a line of the picture


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of one rule, token by token.

    Attributes:
      title: says which rule.
      pieces: the text of each token; they add up to the answer.
      origin: of each token, "draft", "relaxed" or "target".
      kl: of each token, KL(target || draft) in nats; NaN where no draft token stood.
      note: what it took, in one line.
    """

    title: str
    pieces: list[str]
    origin: list[str]
    kl: np.ndarray
    note: str

    @property
    def bars(self) -> list[tuple[int, str, str, float]]:
        """Of each token whose divergence is known: its place, its text, the colour of its origin, and KL."""
        tokens = zip(self.pieces, self.origin, map(float, self.kl), strict=True)
        return [(i, piece, _DARK[o], kl) for i, (piece, o, kl) in enumerate(tokens) if math.isfinite(kl)]


def answer_of(title: str, tokenizer, result: Generation, row: int = 0, note: str = "") -> Answer:
    """Row `row` of what `generate(..., trace=True)` returned."""
    assert result.kl is not None
    texts = split(tokenizer, result.tokens[row])
    return Answer(title, texts, list(result.origin[row]), np.asarray(result.kl[row]), note)


def tokens_html(answer: Answer) -> str:
    """The answer as a fragment of HTML: a `<pre>` of marked tokens."""
    return marked_html(answer.pieces, answer.origin, answer.kl)


def render(template: str, **values: Any) -> str:
    """A page, or a fragment of one, from `templates/`; text that it is given is escaped."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("kljudge_jax.evaluation.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.globals |= {"tokens": tokens_html, "legend": legend_html, "table": table_html}  # HTML already
    return pages.get_template(template).render(values)


def write_page(
    path: str | Path, heading: str, prompt: str, answers: Sequence[Answer], table: Sequence[Sequence[str]], foot: str
) -> None:
    """Writes a page that needs nothing but itself.

    Args:
      path: of the `.html` file.
      heading, prompt: what was asked.
      answers: one section each.
      table: rows of cells under them, the first one the head; may be empty.
      foot: what made the page, and on what.
    """
    text = render("answers.html", heading=heading, prompt=prompt, answers=answers, rows=table, foot=foot)
    write_text(path, text)


def write_picture(path: str | Path, answers: Sequence[Answer]) -> None:
    """Writes the answers as a PNG: coloured text above, the divergence of each token below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    laid = [_lay_out(answer) for answer in answers]
    heights = [0.19 * (1 + max((line for *_, line in cells), default=0)) + 1.5 for cells in laid]
    figure = Figure(figsize=(9.2, sum(heights) + 0.5), dpi=130, layout="constrained")
    handles = [Patch(color=COLOURS[origin], label=origin) for origin in COLOURS]
    top = max((float(kl) for answer in answers for kl in answer.kl if math.isfinite(kl)), default=0.0) or 1.0
    parts = figure.subfigures(len(answers), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, answer, cells, height in zip(parts, answers, laid, heights, strict=True):
        text, bars = part.subplots(2, 1, height_ratios=[max(height - 1.1, 0.3), 0.8])
        text.set_title(answer.title, loc="left", fontsize=10, fontweight="bold")
        lines = 1 + max((line for *_, line in cells), default=0)
        text.set(xlim=(0, _COLUMNS), ylim=(lines, 0))
        text.axis("off")
        text.legend(handles=handles, loc="lower right", ncols=3, fontsize=7, frameon=False, bbox_to_anchor=(1, 1))
        for piece, origin, column, line in cells:
            text.axvspan(column, column + len(piece), 1 - (line + 0.95) / lines, 1 - (line + 0.05) / lines,
                         color=COLOURS[origin], lw=0)  # fmt: skip
            for i, letter in enumerate(piece):
                text.text(column + i + 0.5, line + 0.5, letter, family="monospace", fontsize=9, ha="center",
                          va="center", parse_math=False)  # fmt: skip
        places = np.arange(len(answer.kl))
        heights_of = np.where(np.isfinite(answer.kl), answer.kl, 0.0)
        bars.bar(places, heights_of, color=[_DARK[o] for o in answer.origin], width=0.9)
        bars.set(xlim=(-0.5, max(len(places), 1) - 0.5), ylim=(0, 1.05 * top))
        bars.set_ylabel("KL (nats)", fontsize=8)
        bars.tick_params(labelsize=7)
        bars.spines[["top", "right"]].set_visible(False)
        bars.set_xlabel(f"token   ({answer.note})" if answer.note else "token", fontsize=8)
    with named(Path(path)):
        figure.savefig(path)


_DARK = {"draft": "#2e8b62", "relaxed": "#c98500", "target": "#3a74b8"}


def _lay_out(answer: Answer) -> list[tuple[str, str, int, int]]:
    """Runs of one token on one line: text, origin, column, line."""
    cells, column, line = [], 0, 0
    for piece, origin in zip(answer.pieces, answer.origin, strict=True):
        parts = piece.split("\n")
        for index, part in enumerate(parts):
            if index:
                column, line = 0, line + 1
            if column + len(part) > _COLUMNS and len(part) <= _COLUMNS:
                column, line, part = 0, line + 1, part.removeprefix(" ")
            while part:
                cells.append((part[: _COLUMNS - column], origin, column, line))
                column, part = column + len(cells[-1][0]), part[_COLUMNS - column :]
                if part:
                    column, line = 0, line + 1
    return cells

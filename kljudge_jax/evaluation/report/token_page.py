"""An answer as a page and as a picture: each token coloured by its origin, with the divergence beneath it."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kljudge_jax.generation.detokenize import split
from kljudge_jax.generation.display import COLOURS, legend_html, marked_html, table_html
from kljudge_jax.generation.results import Generation

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


def answer_of(title: str, tokenizer, result: Generation, row: int = 0, note: str = "") -> Answer:
    """Row `row` of what `generate(..., trace=True)` returned."""
    assert result.kl is not None
    texts = split(tokenizer, result.tokens[row])
    return Answer(title, texts, list(result.origin[row]), np.asarray(result.kl[row]), note)


def tokens_html(answer: Answer) -> str:
    """The answer as a fragment of HTML: a `<pre>` of marked tokens."""
    return marked_html(answer.pieces, answer.origin, answer.kl)


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
    sections = "".join(
        f"<section><h2>{html.escape(a.title)}</h2>{tokens_html(a)}{_bars(a)}<p class=note>{html.escape(a.note)}</p>"
        "</section>"
        for a in answers
    )
    scrolling = f"<div class=scroll>{table_html(table)}</div>"
    body = f'<pre class="prompt">{html.escape(prompt)}</pre>{legend_html()}{sections}{scrolling}'
    Path(path).write_text(page(heading, body, foot), encoding="utf-8")


def page(heading: str, body: str, foot: str, wide: bool = False) -> str:
    """A whole page, styled, around a body of HTML; `wide` for one with large tables."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main{' class=wide' if wide else ''}><h1>{html.escape(heading)}</h1>"
        f"{body}<footer>{html.escape(foot)}</footer></main></body></html>\n"
    )


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
    figure.savefig(path)


_DARK = {"draft": "#2e8b62", "relaxed": "#c98500", "target": "#3a74b8"}

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#fff;color:#1b1b1b}
main{max-width:54rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:1.6rem 0 .3rem}
pre{font:14px/1.7 ui-monospace,monospace;white-space:pre-wrap;margin:.3rem 0}
.prompt{border-left:4px solid #bbb;padding-left:.8rem}
.tokens span{border-radius:2px;padding:1px 0;margin-right:1px}
.legend{list-style:none;padding:0;font-size:.9rem;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem}
.note,footer{color:#666;font-size:.9rem}footer{margin-top:2rem}
table{border-collapse:collapse;margin-top:1.6rem;font-size:.92rem}
th,td{padding:.25rem .7rem;white-space:nowrap}
th,td{border-bottom:1px solid #ccc;text-align:right}th:first-child,td:first-child{text-align:left}
svg{display:block;width:100%;height:56px}
figure{margin:1rem 0}figure svg{height:auto;max-width:72rem;background:#fff}
main.wide{max-width:90rem}.wide p,.wide ul,.wide pre{max-width:54rem}
.scroll{overflow-x:auto}.scroll table{font-size:.82rem;margin-top:.4rem}.scroll td,.scroll th{padding:.2rem .45rem}
summary{cursor:pointer;margin-top:.6rem}
@media (prefers-color-scheme:dark){
body{background:#161616;color:#e8e8e8}th,td{border-color:#444}.note,footer{color:#999}}
""".strip()


def _bars(answer: Answer) -> str:
    """The divergences as a strip of bars, tallest = the answer's largest."""
    known = answer.kl[np.isfinite(answer.kl)]
    if not known.size or known.max() <= 0:
        return ""
    bars = "".join(
        f'<rect x="{i}" y="{50 - 50 * kl / known.max():.2f}" width=".85" height="{50 * kl / known.max():.2f}" '
        f'fill="{_DARK[origin]}"><title>{html.escape(piece)}: KL {kl:.3f}</title></rect>'
        for i, (piece, origin, kl) in enumerate(zip(answer.pieces, answer.origin, answer.kl, strict=True))
        if math.isfinite(kl)
    )
    return (
        f'<svg viewBox="0 0 {len(answer.kl)} 50" preserveAspectRatio="none" role="img" '
        f'aria-label="KL of each token, at most {known.max():.2f} nats">{bars}</svg>'
        f"<p class=note>KL(target || draft) of each token; the tallest bar is {known.max():.2f} nats</p>"
    )


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

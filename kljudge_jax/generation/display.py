"""Answers and tables as fragments of HTML, for notebooks and pages: each token coloured by where it came from."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kljudge_jax.generation.results import Generation
    from kljudge_jax.generation.stats import Stats

# One colour an origin, told apart by people who see no red or no green too; relaxed tokens are underlined besides.
COLOURS = {"draft": "#bfe3d0", "relaxed": "#ffd27a", "target": "#b9d4f4"}
MEANINGS = {
    "draft": "drafted, and the target would have written it too",
    "relaxed": "drafted, kept by the relaxed rule only",
    "target": "written by the target",
}

# So many answers of a batch are shown; a notebook keeps what it shows.
_MOST_ANSWERS = 8


def marked_html(pieces: Sequence[str], origin: Sequence[str], kl: Iterable[float] | None = None) -> str:
    """Tokens as a `<pre>` that brings its own style; a token's origin, and KL where it is known, are its tooltip.

    Args:
      pieces: the text of each token.
      origin: of each token, "draft", "relaxed" or "target".
      kl: of each token, in nats; NaN or infinite where there is nothing to say.
    """
    marks = []
    for piece, where, nats in zip(pieces, origin, [math.nan] * len(pieces) if kl is None else kl, strict=True):
        if not piece:
            continue
        known = f", KL {nats:.3f} nats" if math.isfinite(nats) else ""
        line = "border-bottom:2px solid #8a5a00;" if where == "relaxed" else ""
        text = html.escape(piece).replace("\n", "\u21b5\n")
        marks.append(
            f'<span class="{where}" style="background:{COLOURS[where]};color:#111;{line}" '
            f'title="{MEANINGS[where]}{known}">{text}</span>'
        )
    return f'<pre class="tokens" style="white-space:pre-wrap;line-height:1.7">{"".join(marks)}</pre>'


def legend_html() -> str:
    """What the colours mean."""
    items = "".join(
        f'<li><span style="background:{COLOURS[o]};color:#111">&nbsp;{o}&nbsp;</span> {MEANINGS[o]}</li>'
        for o in COLOURS
    )
    return f'<ul class="legend" style="list-style:none;padding:0">{items}</ul>'


def table_html(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table, the first one its head; nothing for none."""
    if not rows:
        return ""
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for row, tag in zip(rows, ["th"] + ["td"] * (len(rows) - 1), strict=True)
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def scrolling_html(rows: Sequence[Sequence[str]]) -> str:
    """Such a table that keeps its lines, and scrolls where it is too wide: for notebooks, whose own style breaks them.

    Its first column is a name, the others are figures.
    """
    style = (
        ".kljudge td,.kljudge th{white-space:nowrap!important;text-align:right!important}"
        ".kljudge td:first-child,.kljudge th:first-child{text-align:left!important}"
    )
    return f'<style>{style}</style><div class="kljudge" style="overflow-x:auto">{table_html(rows)}</div>'


def generation_html(result: Generation) -> str:
    """The first answers of a batch, token by token, and what each of them took."""
    parts = [] if result.tokenizer is None else [legend_html()]
    for row, stats in enumerate(result.stats.rows[:_MOST_ANSWERS]):
        if result.tokenizer is not None:
            kl = None if result.kl is None else result.kl[row]
            parts.append(marked_html(result.pieces(row), result.origin[row], kl))
        parts.append(f"<p>{html.escape(cost(stats))}</p>")
    left = len(result.tokens) - _MOST_ANSWERS
    if result.cycle_costs is not None:
        parts.append(f"<p>{html.escape(pace(result))}</p>")
    return "".join(parts) + (f"<p>and {left} more answers; all together: {cost(result.stats)}</p>" if left > 0 else "")


def stats_html(stats: Stats) -> str:
    """The counts as a table of two columns."""
    figures = {
        "answers": str(max(len(stats.rows), 1)),
        "tokens": str(stats.tokens),
        "target passes": str(stats.cycles),
        "mean acceptance length": f"{stats.mean_acceptance_length:.2f}",
        "draft tokens kept": f"{stats.accepted} of {stats.drafted}",
        "of them relaxed": str(stats.relaxed),
        "tokens/s": f"{stats.tokens_per_second:.1f}",
        "seconds, and to compile": f"{stats.seconds:.2f}, {stats.compile_seconds:.2f}",
        "failed": str(stats.failed),
        "left by the draft": str(stats.draft_failed),
    }
    return scrolling_html([["", ""], *map(list, figures.items())])


def pace(result: Generation) -> str:
    """What an adaptive draft length came to, in one line; "" where it was fixed."""
    stats, costs = result.stats, result.cycle_costs
    if costs is None or not stats.cycles:
        return ""
    line = f"a cycle with {len(costs) - 1} draft tokens costs {costs[-1]:.2f} of the shortest"
    if stats.drafted:
        line += f", and {stats.draft_acceptance_rate:.0%} of the draft's tokens were kept"
    share = stats.plain_cycles / stats.cycles
    if share > 0.5:
        return f"speculation does not pay here, and stopped in {share:.0%} of the cycles: {line}"
    mean = f"{stats.drafted / stats.cycles:.1f} draft tokens a cycle"
    if stats.plain_cycles:
        return f"{mean}, none in {share:.0%} of the cycles: {line}"
    return f"{mean} paid best: {line}"


def cost(stats: Stats) -> str:
    """What an answer took, in one line."""
    line = f"{stats.tokens} tokens in {stats.cycles} target passes"
    if stats.drafted:
        line += f" ({stats.mean_acceptance_length:.2f} each), {stats.relaxed} relaxed"
    if stats.draft_failed:
        line += "; the draft returned NaN or +inf, and the target went on alone"
    return line + ("; a model returned NaN or +inf" if stats.failed else "")

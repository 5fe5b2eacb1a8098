"""Cells of text as a table: Markdown, or columns for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def columns(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Rows by the names of their columns as cells, the head first."""
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table; nothing for none."""
    lines = ["| " + " | ".join(row) + " |\n" for row in cells]
    return "".join([lines[0], "|" + "---|" * len(cells[0]) + "\n", *lines[1:]]) if cells else ""


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Cells as columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def ranged(middle: float, interval: Sequence[float], form: str = ".2f") -> str:
    """`middle (low to high)`."""
    low, high = interval
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"

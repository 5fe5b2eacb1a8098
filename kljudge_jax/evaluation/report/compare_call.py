"""The public call `compare`: results of several machines side by side, from Python."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.report import compare as comparing
from kljudge_jax.evaluation.report.pareto import svg
from kljudge_jax.generation.display import scrolling_html
from kljudge_jax.results_folder import results_folder


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of several machines; a notebook shows their table and picture.

    Attributes:
      results: as they were read.
      notes: what each was asked that the first one was not; "" where nothing differs.
    """

    results: Sequence[comparing.Result]
    notes: Sequence[str]

    def markdown(self) -> str:
        """The table."""
        return comparing.comparison_markdown(self.results, self.notes)

    def save(self, folder: str | Path) -> Path:
        """Writes `compare.md` and `compare.png`, and returns the path of the picture.

        Raises:
          InputError: the folder cannot be made.
        """
        folder = results_folder(folder)
        (folder / "compare.md").write_text(self.markdown(), encoding="utf-8")
        comparing.draw_comparison(self.results, self.notes).savefig(folder / "compare.png")
        return folder / "compare.png"

    def _repr_html_(self) -> str:
        lines = comparing.comparison_notes(self.results, self.notes)
        return (
            scrolling_html(comparing.comparison_table(self.results, self.notes))
            + "".join(f"<p>{html.escape(line)}</p>" for line in lines)
            + svg(comparing.draw_comparison(self.results, self.notes))
        )


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
    results = [comparing.read_result(path) for path in paths]
    return Comparison(results, comparing.compare(results, force))

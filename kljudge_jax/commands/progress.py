"""Progress on standard error: one moving line on a terminal, nothing for programs that read us."""

from __future__ import annotations

import shutil
import sys
import time

from kljudge_jax.evaluation.step import Step

_WIDTH = 24
_CLEAR = "\r\x1b[K"


class Bar:
    """A line that says how far the work has come and about how long the rest takes. A context manager.

    The time left is that of the work of this run, so that what an earlier one did promises nothing.
    """

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._began = time.perf_counter()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        if self._shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def show(self, line: str) -> None:
        """Draws a line; with a bar and the time left where it is a `Step`."""
        if not self._shown:
            return
        text = self._with_bar(line) if isinstance(line, Step) else line
        columns = shutil.get_terminal_size().columns
        print(_CLEAR + text[: columns - 1], end="", file=sys.stderr, flush=True)

    def keep(self, line: str) -> None:
        """Draws a line that stays when the next one comes."""
        if self._shown:
            self.show(line)
            print(file=sys.stderr, flush=True)

    def _with_bar(self, step: Step) -> str:
        filled = _WIDTH * step.done // max(step.total, 1)
        new, left = step.done - step.before, step.total - step.done
        words = ""
        if new > 0 and left > 0:
            words = f", {duration((time.perf_counter() - self._began) / new * left)} left"
        return f"[{'=' * filled}{' ' * (_WIDTH - filled)}] {100 * step.done // max(step.total, 1)} %{words}: {step}"


def duration(seconds: float) -> str:
    """About so long, as a person says it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

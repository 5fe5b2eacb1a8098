"""Progress on standard error: one moving line on a terminal, nothing for programs that read us."""

from __future__ import annotations

import shutil
import sys
import threading
import time

from kljudge_jax.evaluation.step import Step

_WIDTH = 24
_CLEAR = "\r\x1b[K"
_SILENT = 2.0  # seconds after which a line that does not move says how long that is

COMPILING = "compiling for these shapes (kept for next time)"


class Bar:
    """A line that says how far the work has come and about how long the rest takes. A context manager.

    The time left is that of the work of this run, so that what an earlier one did promises nothing. A line that stays
    the same counts the seconds, so that nobody takes a long compilation for a stop.

    Args:
      waiting: what is done before the first line is drawn.
    """

    def __init__(self, waiting: str = COMPILING) -> None:
        self._shown = sys.stderr.isatty()
        self._began = self._since = time.perf_counter()
        self._text = waiting
        self._drawing, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> Bar:
        if self._shown:
            threading.Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the line away, once and for all: what comes now is the answer."""
        with self._drawing:
            if self._shown and not self._ended.is_set():
                print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._ended.set()

    def show(self, line: str) -> None:
        """Draws a line; with a bar and the time left where it is a `Step`."""
        if not self._shown:
            return
        with self._drawing:
            self._text = self._with_bar(line) if isinstance(line, Step) else line
            self._since = time.perf_counter()
            self._draw(self._text)

    def keep(self, line: str) -> None:
        """Draws a line that stays when the next one comes."""
        if self._shown:
            self.show(line)
            with self._drawing:
                self._text = ""  # it is not drawn again
                print(file=sys.stderr, flush=True)

    def _draw(self, text: str, end: str = "") -> None:
        columns = shutil.get_terminal_size().columns
        print(_CLEAR + text[: columns - 1 - len(end)] + end, end="", file=sys.stderr, flush=True)

    def _count(self) -> None:
        while not self._ended.wait(1.0):
            with self._drawing:
                silent = time.perf_counter() - self._since
                if self._text and silent >= _SILENT and not self._ended.is_set():
                    self._draw(self._text, f" ... {silent:.0f} s")

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

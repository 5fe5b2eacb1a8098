"""Progress on standard error: a moving line on a terminal, nothing for programs that read us."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from kljudge_jax.progress_update import ProgressUpdate

COMPILING = "compiling for these shapes (kept for next time)"


class Bar:
    """A line that says how far the work has come and about how long the rest takes. A context manager.

    The time left is that of the work of this run, so that what an earlier one did promises nothing. A clock runs, so
    that nobody takes a long compilation for a stop.

    Args:
      waiting: what is done before the first line is drawn.
    """

    def __init__(self, waiting: str = COMPILING) -> None:
        self._progress = Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[left]}{task.description}",
                markup=False,
                # One line, however narrow the terminal is.
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=Console(stderr=True, markup=False, highlight=False),
            disable=not sys.stderr.isatty(),
            expand=True,
            redirect_stdout=False,  # an answer that is piped stays where it belongs
            transient=True,
        )
        self._task = self._progress.add_task(waiting, total=None, left="")
        self._began = time.perf_counter()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the line away, once and for all: what comes now is the answer."""
        if not self._progress.disable:  # rich 14 ends even that with an empty line
            self._progress.stop()

    def show(self, line: str) -> None:
        """Draws a line; with how far and how long where it is a `ProgressUpdate`."""
        if not isinstance(line, ProgressUpdate):
            self._progress.update(self._task, description=line, refresh=True)
            return
        new, rest = line.done - line.before, line.total - line.done
        # By hand: rich's own estimate takes what an earlier run did for work of this one.
        seconds = (time.perf_counter() - self._began) / new * rest if new > 0 else 0
        left = f"{duration(seconds)} left: " if seconds else ""
        self._progress.update(
            self._task, description=str(line), completed=line.done, total=line.total, left=left, refresh=True
        )

    def keep(self, line: str) -> None:
        """Draws a line that stays when the next one comes."""
        if not self._progress.disable:
            self.show(line)
            self._progress.console.print(line)


def duration(seconds: float) -> str:
    """About so long, as a person says it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

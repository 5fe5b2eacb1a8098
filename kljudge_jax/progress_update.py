"""A line of a report that knows how far the work has come."""

from __future__ import annotations


class ProgressUpdate(str):
    """What a `report` callback is told; a plain str to whoever only wants the words.

    Attributes:
      done, total: of the work, in any one unit.
      before: what of it was done before this run, which says nothing of its speed.
    """

    done: int
    total: int
    before: int

    def __new__(cls, line: str, done: int, total: int, before: int = 0) -> ProgressUpdate:
        step = super().__new__(cls, line)
        step.done, step.total, step.before = done, total, before
        return step

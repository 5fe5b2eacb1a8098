"""What an evaluation of several rules and tasks has finished, kept on disk so that a stopped one can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kljudge_jax.evaluation.report.harness import HarnessRow
from kljudge_jax.records import Count, LineWriter, Record, convert, plain, read_log

_ADVICE = "delete the file and repeat the command, or name another folder"


class Finished(Record, frozen=True, kw_only=True):
    """What a rule gave on a task: a line of `finished.jsonl` after the first, which says what was asked."""

    rule: str
    task: str
    rows: tuple[HarnessRow, ...]
    failed: Count


class ResultStore:
    """Rows of figures by rule and task, in a file of one JSON line each under a line that says what was asked.

    A file of another evaluation is begun anew; a last line that a kill cut short is dropped.

    Raises:
      InputError: a line of the file is damaged.
    """

    def __init__(self, path: str | Path, asked: dict[str, Any]) -> None:
        self._path = Path(path)
        self._found: dict[tuple[str, str], Finished] = {}
        lines = read_log(path, dict[str, Any], _ADVICE, mend=True)
        if lines[:1] == [plain(asked)]:
            for number, line in enumerate(lines[1:], 2):
                kept = convert(line, Finished, f"{path}, line {number}", _ADVICE)
                self._found[kept.rule, kept.task] = kept
        else:
            self._path.unlink(missing_ok=True)
            self._append(asked)

    def __contains__(self, one: tuple[str, str]) -> bool:
        return one in self._found

    def __getitem__(self, one: tuple[str, str]) -> Finished:
        """What a rule gave on a task."""
        return self._found[one]

    def add(self, one: tuple[str, str], rows: list[HarnessRow], failed: int) -> None:
        """Keeps what a rule gave on a task."""
        self._found[one] = Finished(rule=one[0], task=one[1], rows=tuple(rows), failed=failed)
        self._append(self._found[one])

    def _append(self, line: Any) -> None:
        with LineWriter(self._path) as file:
            file.append(line)
            file.sync()

"""What an evaluation of several rules and tasks has finished, kept on disk so that a stopped one can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path


class ResultStore:
    """Rows of figures by rule and task, in a file of one JSON line each under a line that says what was asked.

    A file of another evaluation is begun anew; a last line that a kill cut short is dropped.
    """

    def __init__(self, path: str | Path, asked: dict) -> None:
        self._path = Path(path)
        self._found: dict[tuple[str, str], dict] = {}
        asked = json.loads(json.dumps(asked))
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if whole[:1] == [asked]:
            self._found = {(kept["rule"], kept["task"]): kept for kept in whole[1:]}
        text = "".join(json.dumps(line) + "\n" for line in [asked, *self._found.values()])
        self._path.write_text(text, encoding="utf-8")

    def __contains__(self, one: tuple[str, str]) -> bool:
        return one in self._found

    def __getitem__(self, one: tuple[str, str]) -> dict:
        """`rows` and `failed` of a rule and task."""
        return self._found[one]

    def add(self, one: tuple[str, str], rows: list[dict], failed: int) -> None:
        """Keeps what a rule gave on a task."""
        self._found[one] = {"rule": one[0], "task": one[1], "rows": rows, "failed": failed}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._found[one]) + "\n")
            file.flush()
            os.fsync(file.fileno())

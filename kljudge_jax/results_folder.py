"""The folder that a command or a call writes its results to, and how a file of it is written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kljudge_jax.errors import InputError


def results_folder(folder: str | Path) -> Path:
    """The folder, made if it is not there.

    Raises:
      InputError: it cannot be made, or nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder of results: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be a folder of results: nothing can be written there")
    return folder


@contextlib.contextmanager
def folder_or_temporary(folder: str | Path | None) -> Iterator[Path]:
    """The folder as it is named; where none is, one that goes when the block ends."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def write_json(path: Path, found: Any) -> None:
    """Writes plain data as JSON; a kill leaves all of it or what was there before."""
    whole = path.with_suffix(".partial")
    whole.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(whole, path)

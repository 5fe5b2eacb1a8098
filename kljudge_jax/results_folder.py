"""The folder that a command or a call writes its results to."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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

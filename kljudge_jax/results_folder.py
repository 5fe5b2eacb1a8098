"""The folder that a command or a call writes its results to."""

from __future__ import annotations

import os
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

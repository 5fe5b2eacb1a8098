"""A file of JSON in a model's folder that others wrote, whose fields are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kljudge_jax.records import read

DOWNLOAD_AGAIN = "download the folder again"


def read_foreign(path: Path) -> dict[str, Any]:
    """The object in the file. Raises `InputError` if there is none."""
    return read(path, dict[str, Any], DOWNLOAD_AGAIN)

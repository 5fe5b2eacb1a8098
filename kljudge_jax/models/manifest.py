"""SHA-256 sums of a folder's files, in the format of `sha256sum`: what is shipped can be checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.records import read_text, write_text

NAME = "SHA256SUMS"


def write_manifest(folder: str | Path, parts: Sequence[str]) -> None:
    """Writes `SHA256SUMS` over the given files and folders of a folder; `sha256sum -c SHA256SUMS` checks it too."""
    folder = Path(folder)
    files = sorted(file for part in parts for file in _files(folder / part))
    lines = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_text(folder / NAME, "".join(lines))


def check_manifest(folder: str | Path) -> None:
    """Compares a folder with its `SHA256SUMS`.

    Raises:
      InputError: there is none, or files are missing or not what they were; the message names them.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file():
        raise InputError(f"{folder} has no {NAME}: install the package again")
    lines = read_text(folder / NAME, "install the package again").splitlines()
    differing = []
    for line in lines:
        digest, _, name = line.partition("  ")
        file = folder / name
        if "\0" in name or not file.is_file() or _digest(file) != digest:
            differing.append(name)
    if differing:
        raise InputError(f"{', '.join(differing)} in {folder} differs from its {NAME}: install the package again")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

"""The folder that a command or a call writes its results to."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.records import named


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


class FolderLock:
    """Holds a folder for one writer until it is closed or the process ends, however it ends. A context manager.

    A system without `fcntl`, and a file system without locks, go without.

    Args:
      folder: which is there; gets a file `lock`, which says nothing by itself and stays.

    Raises:
      InputError: another writer holds it.
      OSError: nothing can be written there; names the file.
    """

    def __init__(self, folder: Path):
        path = folder / "lock"
        with named(path):
            self._file = path.open("w")
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"another process writes to {folder}: wait for it, or name a new folder") from None
        except (ImportError, OSError):
            pass

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another writer have the folder."""
        self._file.close()


@contextlib.contextmanager
def folder_or_temporary(folder: str | Path | None) -> Iterator[Path]:
    """The folder as it is named; where none is, one that goes when the block ends."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)

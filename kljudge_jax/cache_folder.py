"""Where what is compiled is kept between processes, and whether what lies there may be run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*inside: str) -> Path:
    """The package's folder in the user's cache, or one inside it, made for this user alone.

    Raises:
      OSError: it cannot be made.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kljudge_jax"
    for name in ("", *inside):
        folder = folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def is_ours(path: Path) -> bool:
    """Whether nobody else can have put it there, or anything into it: it is code that will run."""
    if not hasattr(os, "getuid"):
        return True
    about = path.stat()
    return about.st_uid in (os.getuid(), 0) and not about.st_mode & 0o022

"""One JSON object in a file that came from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kljudge_jax.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; InputError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} where an object is needed")
    return content

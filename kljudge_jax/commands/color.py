"""Terminal colours of where a token came from."""

from __future__ import annotations

import os
import sys

_COLOURS = {"draft": "\x1b[32m", "relaxed": "\x1b[33m", "target": "\x1b[36m"}
_PLAIN = "\x1b[0m"


def add_color(parser) -> None:
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colour tokens by origin")


def is_coloured(options) -> bool:
    """Whether to colour: by the option, else on a terminal unless NO_COLOR is set (https://no-color.org)."""
    return options.color == "always" or (
        options.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )


def painted(text: str, origin: str) -> str:
    """Text in the colour of its origin; nothing for no text."""
    return f"{_COLOURS[origin]}{text}{_PLAIN}" if text else ""


def legend() -> str:
    """The origins, each in its colour."""
    return "  ".join(painted(origin, origin) for origin in _COLOURS)

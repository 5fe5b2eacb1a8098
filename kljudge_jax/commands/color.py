"""Terminal colours of where a token came from."""

from __future__ import annotations

import os
import sys

import click

from kljudge_jax.commands.command import option

_COLOURS = {"draft": "green", "relaxed": "yellow", "target": "cyan"}

COLOR = option("--color", "colour tokens by origin", type=click.Choice(("auto", "always", "never")), default="auto")


def is_coloured(options) -> bool:
    """Whether to colour: by the option, else on a terminal unless NO_COLOR is set (https://no-color.org)."""
    return options.color == "always" or (
        options.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )


def painted(text: str, origin: str) -> str:
    """Text in the colour of its origin; nothing for no text."""
    return click.style(text, fg=_COLOURS[origin]) if text else ""


def legend() -> str:
    """The origins, each in its colour."""
    return "  ".join(painted(origin, origin) for origin in _COLOURS)

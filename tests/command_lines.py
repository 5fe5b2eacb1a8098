"""Command lines as tests read them: parsed by `kljudge`, and not run."""

import types

import click

from kljudge_jax.cli import COMMANDS, kljudge


def command_of(name):
    """A sub-command of `kljudge`."""
    return kljudge.get_command(click.Context(kljudge), name)


def parsed(words):
    """The options of a command line, as its command gets them."""
    words = [str(word) for word in words]
    return types.SimpleNamespace(**command_of(words[0]).make_context(words[0], words[1:]).params)


def commands():
    """Every sub-command, by name."""
    return {name: command_of(name) for name in COMMANDS}

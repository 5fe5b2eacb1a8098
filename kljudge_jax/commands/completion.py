"""`kljudge completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kljudge_jax.commands.command import OK, argument, command

_SHELLS = ("bash", "zsh", "fish")


@command(
    "Print a script that completes commands and options in a shell.",
    [argument("shell", "whose script", type=click.Choice(_SHELLS))],
    '  eval "$(kljudge completion bash)"          # or in ~/.bashrc\n'
    '  eval "$(kljudge completion zsh)"           # or in ~/.zshrc, after compinit\n'
    "  kljudge completion fish > ~/.config/fish/completions/kljudge.fish",
)
def completion(options) -> int:
    from kljudge_jax.cli import kljudge

    made = get_completion_class(options.shell)
    assert made is not None  # for these shells click has one
    print(made(kljudge, {}, "kljudge", "_KLJUDGE_COMPLETE").source())
    return OK

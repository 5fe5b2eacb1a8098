"""The command `kljudge`: one sub-command per job, each in a file of `commands/` that is imported on demand."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

import click

from kljudge_jax import __version__
from kljudge_jax.commands.command import BAD_INPUT, said

# In the order of `kljudge --help`.
COMMANDS = (
    "demo", "generate", "rules", "sweep", "evaluate", "calibrate", "bench", "compare", "perplexity", "mine", "plan",
    "train-judge", "correspond", "train-draft", "train-pair", "convert", "completion",
)  # fmt: skip

_EXAMPLES = """\b
examples:
  kljudge demo                                    # see it at work, on a pair that comes with the package
  kljudge generate --target Qwen/Qwen2.5-1.5B-Instruct --draft Qwen/Qwen2.5-0.5B-Instruct "Why is the sky blue?"
  kljudge sweep --target big.gguf --draft small.gguf --task gsm8k:test.jsonl --rules none,exact,kl:0.4 --n 100
  kljudge COMMAND --help                          # the options of a command, with examples"""


class _Lazy(click.Group):
    """A group whose commands are imported when they are asked for: each is the function of its file's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        return getattr(importlib.import_module(f"kljudge_jax.commands.{name}"), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)


kljudge = _Lazy(
    "kljudge",
    help="Judge decoding for JAX.",
    epilog=_EXAMPLES,
    no_args_is_help=False,
    callback=lambda: None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
click.version_option(__version__, prog_name="kljudge", message="%(prog)s %(version)s")(kljudge)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `kljudge` and returns its exit status: 0, 1 (the work failed), 2 (bad input) or 130 (Ctrl-C)."""
    # Set before anything imports them: no advice about libraries that are not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding that lacks a character shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        return kljudge.main(words, prog_name="kljudge", standalone_mode=False, obj=words)
    except click.UsageError as error:
        print(said(error), file=sys.stderr)
        return BAD_INPUT
    except click.Abort:  # Ctrl-C before the command began
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

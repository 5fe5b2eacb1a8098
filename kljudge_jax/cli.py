"""The command `kljudge`: one sub-command per job, each in a file of `commands/`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from kljudge_jax.commands import (
    bench,
    calibrate,
    compare,
    completion,
    convert,
    correspond,
    demo,
    evaluate,
    generate,
    mine,
    perplexity,
    plan,
    rules,
    sweep,
    train_judge,
    train_pair,
)
from kljudge_jax.commands.on_hosts import run_on_hosts
from kljudge_jax.commands.options import BAD_INPUT, FAILED, OK, Help, Parser
from kljudge_jax.errors import InputError

# In the order of `kljudge --help`.
_COMMANDS = (
    demo,
    generate,
    rules,
    sweep,
    evaluate,
    calibrate,
    bench,
    compare,
    perplexity,
    mine,
    plan,
    train_judge,
    correspond,
    train_pair,
    convert,
    completion,
)

_EXAMPLES = """examples:
  kljudge demo                                    # see it at work, on a pair that comes with the package
  kljudge generate --target Qwen/Qwen2.5-1.5B-Instruct --draft Qwen/Qwen2.5-0.5B-Instruct "Why is the sky blue?"
  kljudge sweep --target big.gguf --draft small.gguf --task gsm8k:test.jsonl --rules none,exact,kl:0.4 --n 100
  kljudge COMMAND --help                          # the options of a command, with examples"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `kljudge` and returns its exit status: 0, 1 (the work failed), 2 (bad input) or 130 (Ctrl-C)."""
    # Set before anything imports them: no advice about libraries that are not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _parser().parse_args(argv)
    options.words = list(sys.argv[1:] if argv is None else argv)  # reports say what made them
    try:
        with _plain_warnings(options.command):
            return _run(options)
    except InputError as error:
        print(f"kljudge {options.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # JAX's word for it; its class would start JAX
            raise
        print(
            f"kljudge {options.command}: a device has too little memory ({str(error).splitlines()[0]}): lower --batch "
            "or --max-new-tokens, or spread the models over more devices with --mesh; kljudge plan says what fits",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        kept = options.stopped.format(**vars(options))
        print(f"\nkljudge {options.command}: stopped; {kept}", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(options: argparse.Namespace) -> int:
    from kljudge_jax.models.compiled import keep_compiled

    keep_compiled()  # for commands that load no pair too
    if getattr(options, "hosts", None) is not None:
        return run_on_hosts(options)
    if getattr(options, "coordinator", None) is not None or getattr(options, "host", None) is not None:
        raise InputError("--coordinator and --host are of several hosts: say how many with --hosts")
    status = options.run(options)
    sys.stdout.flush()  # here, where a reader that has gone is no error
    return status


@contextlib.contextmanager
def _plain_warnings(command: str) -> Iterator[None]:
    """What the package warns of, as a line of the command: some libraries give the root logger a form of their own."""
    log, handler = logging.getLogger("kljudge_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"kljudge {command}: %(message)s"))
    log.addHandler(handler)
    heard_above, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = heard_above
        log.removeHandler(handler)


def _parser() -> argparse.ArgumentParser:
    from kljudge_jax import __version__

    parser = Parser(prog="kljudge", description="Judge decoding for JAX.", epilog=_EXAMPLES, formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"kljudge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in _COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

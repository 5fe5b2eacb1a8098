"""What makes a function a sub-command of `kljudge`: options in groups, errors in one line, an exit status."""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from kljudge_jax.errors import InputError
from kljudge_jax.spec import split_specs

OK, FAILED, BAD_INPUT = 0, 1, 2

# What a folder of results can say no with: a full disk, a quota, a read-only file system, rights, a broken device.
_FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)

# Written down, for a shell that completes does not wait for JAX; a test holds them to the rules there are.
RULE_NAMES = (
    "none", "exact", "kl", "judge", "adaptive", "all", "asd", "block", "cactus", "cascade_opt", "cascade_tok", "ears",
    "ensemble", "entropy", "entropy_verify", "fly", "fuzzy", "gbv", "kseq", "lenience", "margin", "mentored", "pivot",
    "random", "reflective", "rfuzzy", "secure", "synthetic", "thinking", "thinking_ratio", "topk", "typical",
)  # fmt: skip


class Option(click.Option):
    """An option, and the heading under which `--help` lists it."""

    def __init__(self, *names: Any, group: str = "Options", **settings: Any):
        super().__init__(*names, **settings)
        self.group = group


class Argument(click.Argument):
    """An argument that `--help` explains."""

    group = "Arguments"

    def __init__(self, *names: Any, about: str, **settings: Any):
        super().__init__(*names, **settings)
        self.about = about

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.about


class Command(click.Command):
    """A sub-command. `stopped` says what Ctrl-C leaves and how to go on, its options in braces."""

    def __init__(self, name: str, run: Callable[[types.SimpleNamespace], int], *, stopped: str, **settings: Any):
        super().__init__(name, **settings)
        self.run, self.stopped = run, stopped

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            left = super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # which click leaves out where an option lacks its value
            raise
        if left:
            ctx.fail(f"too many arguments: {' '.join(left)}")
        return left

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            if (record := one.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(one, "group", "Options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> int:
        """Runs the command and returns its exit status: 0, 1 (the work failed), 2 (bad input) or 130 (Ctrl-C)."""
        name = str(self.name)
        # `words`: reports say what made them.
        options = types.SimpleNamespace(**ctx.params, command=name, words=ctx.obj)
        try:
            with plain_warnings(name):
                status = _run(self.run, options)
            sys.stdout.flush()  # here, where a reader that has gone is no error
            return status
        except InputError as error:
            print(f"kljudge {name}: {error}", file=sys.stderr)
            return BAD_INPUT
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):  # JAX's word for it; its class would start JAX
                raise
            print(
                f"kljudge {name}: a device has too little memory ({str(error).splitlines()[0]}): lower --batch or "
                "--max-new-tokens, or spread the models over more devices with --mesh; kljudge plan says what fits",
                file=sys.stderr,
            )
            return FAILED
        except KeyboardInterrupt:
            print(f"\nkljudge {name}: stopped; {self.stopped.format(**ctx.params)}", file=sys.stderr)
            return 128 + signal.SIGINT
        except BrokenPipeError:
            # Whoever read our output has gone; Python would complain once more while it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        except OSError as error:
            if error.errno not in _FULL_OR_CLOSED:  # not of the files that results go to
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(
                f"kljudge {name}: {where}{error.strerror}: make room or name another folder, and repeat the command",
                file=sys.stderr,
            )
            return FAILED


def command(
    summary: str,
    params: Sequence[click.Parameter],
    examples: str,
    stopped: str = "nothing is kept: repeat the command",
) -> Callable[[Callable[[types.SimpleNamespace], int]], Command]:
    """Makes a function of its options, which returns an exit status, the sub-command of its name."""

    def made(run: Callable[[types.SimpleNamespace], int]) -> Command:
        return Command(
            run.__name__.replace("_", "-"),
            run,
            stopped=stopped,
            params=list(params),
            help=summary,
            short_help=summary,  # or click would cut it short
            epilog=f"\b\nexamples:\n{examples}",  # \b: the lines are not to be wrapped
            # Extra arguments are refused by `parse_args`, in our words.
            context_settings={"show_default": True, "allow_extra_args": True},
        )

    return made


def option(name: str, help: str, **settings: Any) -> Option:
    """An option; settings are those of `click.Option`, and `group`."""
    return Option([name], help=help, **settings)


def flag(name: str, help: str, **settings: Any) -> Option:
    """An option without a value."""
    return Option([name], help=help, is_flag=True, **settings)


def argument(name: str, about: str, **settings: Any) -> Argument:
    """A positional argument; settings are those of `click.Argument`."""
    return Argument([name], about=about, **settings)


class Text(click.ParamType):
    """Text, by its name in `--help`; a shell completes it from `choices` and, with `files`, from files."""

    def __init__(self, name: str, choices: Sequence[str] = (), files: bool = False):
        self.name, self.choices, self.files = name, choices, files

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)  # a default too

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [one for one in self.choices if one.startswith(incomplete)]
        if self.files and not found:
            return [CompletionItem(incomplete, type="file")]  # by the shell itself, which is given nothing beside it
        files = sorted(glob.glob(f"{glob.escape(incomplete)}*")) if self.files else []
        return [CompletionItem(one) for one in [*found, *files]]


class Whole(click.ParamType):
    """A whole number from `least` to `most`."""

    name = "INT"

    def __init__(self, least: int = 1, most: int | None = None):
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            self.fail(f"give whole numbers, not {value!r}", param, ctx)
        if number < self.least:
            self.fail(f"numbers start at {self.least}, got {number}", param, ctx)
        if self.most is not None and number > self.most:
            self.fail(f"numbers end at {self.most}, got {number}", param, ctx)
        return number


class Wholes(click.ParamType):
    """Whole numbers from `least` on, with commas."""

    name = "INTS"

    def __init__(self, least: int = 1):
        self.one = Whole(least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not isinstance(value, str):  # converted before
            return value
        return tuple(dict.fromkeys(self.one.convert(number, param, ctx) for number in value.split(",")))


class Lengths(click.ParamType):
    """Draft lengths with commas: `8,24`, `4,adaptive:maximum=8,cost=size`."""

    name = "LENGTHS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(split_specs(value)) if isinstance(value, str) else value


# Placeholders, and what a shell offers in their place.
EMBEDDED = "embedded"  # the pair that comes with the package, in place of two models
EMBEDDED_HEAD = "embedded:head"  # the head of its target, in place of its draft
MODEL = Text("MODEL", [EMBEDDED], files=True)
DRAFT = Text("MODEL", [EMBEDDED_HEAD], files=True)
RULE, RULES = Text("RULE", RULE_NAMES), Text("RULES", RULE_NAMES)
FILE, DIR = Text("FILE", files=True), Text("DIR", files=True)


def said(error: click.UsageError) -> str:
    """A mistake on the command line as one line that says what to do."""
    program = "kljudge" if error.ctx is None else error.ctx.command_path
    near: Sequence[str] | None = None
    if isinstance(error, click.NoSuchOption):
        what, near = f"no option {error.option_name}", error.possibilities
    elif isinstance(error, click.exceptions.NoSuchCommand):
        what, near = f"no command {error.command_name!r}", error.possibilities
    elif isinstance(error, click.BadParameter) and type(error) is click.BadParameter and error.param is not None:
        what = f"{_name(error.param)}: {error.message}"
    else:
        what = error.format_message()
        what = what[:1].lower() + what[1:]
    what = " ".join(what.split()).rstrip(".")
    advice = f": did you mean {near[0]}? See" if near else "; see"
    return f"{program}: {what}{advice} {program} --help"


def _name(param: click.Parameter) -> str:
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


def _run(run: Callable[[types.SimpleNamespace], int], options: types.SimpleNamespace) -> int:
    from kljudge_jax.models.compiled import keep_compiled

    keep_compiled()  # for commands that load no pair too
    if getattr(options, "hosts", None) is not None:
        from kljudge_jax.commands.on_hosts import run_on_hosts

        return run_on_hosts(run, options)
    if getattr(options, "coordinator", None) is not None or getattr(options, "host", None) is not None:
        raise InputError("--coordinator and --host are of several hosts: say how many with --hosts")
    return run(options)


@contextlib.contextmanager
def plain_warnings(command: str) -> Iterator[None]:
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

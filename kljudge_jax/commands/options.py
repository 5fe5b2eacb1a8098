"""What the sub-commands share: the parser, option groups, exit statuses, notes to the person who waits."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError

OK, FAILED, BAD_INPUT = 0, 1, 2

# The word for the pair that comes with the package, in place of two models.
EMBEDDED = "embedded"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that says what to do, a misspelt word first."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        command = self._refuse_unknown(words)
        options, left = self.parse_known_args(words, namespace)
        if left:
            command.error(f"too many arguments: {' '.join(left)}")
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _refuse_unknown(self, words: list[str]) -> Parser:
        """Ends the program at the first word that is no command or option; else returns the command's own parser."""
        commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), {})
        for i, word in enumerate(words):
            if word == "--":
                break
            if commands and not word.startswith("-"):
                if word not in commands:
                    self._unknown("command", repr(word), difflib.get_close_matches(word, commands, 1))
                return commands[word]._refuse_unknown(words[i + 1 :])
            option, known = word.partition("=")[0], self._option_string_actions
            # What argparse takes for a value: a lone dash, a negative number, and what holds a space.
            value = " " in option or not re.match("-[^0-9.]", option)
            if not value and option not in known:  # not an abbreviation either, which a new option may take away
                self._unknown("option", option, difflib.get_close_matches(option, known, 1))
        return self

    def _unknown(self, kind: str, word: str, near: list[str]) -> NoReturn:
        advice = f": did you mean {near[0]}? See" if near else "; see"
        self.exit(BAD_INPUT, f"{self.prog}: no {kind} {word}{advice} {self.prog} --help\n")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one, and keeps the line breaks of examples."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False or action.default == []
        return action.help if silent else super()._get_help_string(action)


def command(
    commands,
    name: str,
    run: Callable,
    summary: str,
    examples: str,
    stopped: str = "nothing is kept: repeat the command",
) -> argparse.ArgumentParser:
    """A sub-command; `stopped` says after Ctrl-C what is kept and how to go on, its options in braces."""
    parser = commands.add_parser(
        name, help=summary, description=summary, epilog=f"examples:\n{examples}", formatter_class=Help
    )
    parser.set_defaults(run=run, stopped=stopped)
    return parser


def add_models(parser: argparse.ArgumentParser, required: bool = True) -> None:
    group = parser.add_argument_group(
        "models",
        "a hub id, a local folder (safetensors or Orbax) or a .gguf file; `embedded` is the pair of the package",
    )
    group.add_argument("--target", metavar="MODEL", required=required, help="the large model, whose answers are wanted")
    group.add_argument("--draft", metavar="MODEL", help="the small model that proposes; not needed for `none`")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of the target on the hub")
    group.add_argument("--draft-revision", metavar="REV", help="the same for the draft")
    group.add_argument("--tokenizer", metavar="MODEL", help="where to find the tokenizer, if not with the target")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights; auto is bfloat16; on a CPU without a C++ compiler the faster of bfloat16 and float32",
    )
    add_bits(group)
    group.add_argument("--mesh", metavar="SPEC", help="devices to spread the models over, such as data=2,tensor=4")
    group.add_argument(
        "--axes",
        metavar="AXES",
        help="what of the target lies on which axis of the mesh, where not as usual: vocab=none,batch=data+fsdp",
    )
    group.add_argument("--draft-axes", metavar="AXES", help="the same of the draft, such as replicated (as --axes)")
    group.add_argument(
        "--hosts",
        metavar="HOSTS",
        help="run on several hosts, each with this command: auto where the cluster says which (TPU pod, Slurm, "
        "Kubernetes), or how many, with --coordinator and --host; name a --mesh of all their devices",
    )
    group.add_argument("--coordinator", metavar="ADDRESS:PORT", help="of the first host")
    group.add_argument("--host", metavar="INDEX", type=int, help="which host this is, from 0")
    group.add_argument(
        "--patience", metavar="SECONDS", type=int, default=60, help="after which a silent host ends the run"
    )


def add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int = 256) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens", metavar="INT", type=int, default=max_new_tokens, help="the most tokens of an answer"
    )
    group.add_argument("--temperature", metavar="FLOAT", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--top-k", metavar="INT", type=int, default=0, help="keep the k likeliest tokens; 0 is all")
    group.add_argument("--top-p", metavar="FLOAT", type=float, default=1.0, help="keep this much probability mass")
    group.add_argument(
        "--min-p", metavar="FLOAT", type=float, default=0.0, help="drop tokens below this share of the likeliest one's"
    )
    group.add_argument("--seed", metavar="INT", type=int, default=0, help="of the draws when sampling")


def add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        metavar="INT",
        type=int,
        default=8,
        help="answers decoded side by side: a problem that waits takes the slot of an answer that ended",
    )


def check_sampling(options) -> None:
    from kljudge_jax.core.sampling import Sampling

    Sampling.create(options.temperature, options.top_k, options.top_p, options.min_p)
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens starts at 1, got {options.max_new_tokens}")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is a number from 0 to 2**63 - 1, got {options.seed}")


def placement_of(options):
    """Where the options put the models."""
    from kljudge_jax.parallel.placement import Placement

    return Placement.parse(options.mesh, options.axes, options.draft_axes)


def load_pair(options):
    from kljudge_jax import ModelPair

    placed = {"mesh": options.mesh, "axes": options.axes, "draft_axes": options.draft_axes}
    if options.target == EMBEDDED:
        if options.draft not in (None, EMBEDDED) or options.tokenizer or options.revision or options.draft_revision:
            raise InputError("--target embedded brings its own draft and tokenizer: name nothing else")
        return ModelPair.embedded(
            dtype="float32" if options.dtype == "auto" else options.dtype,
            bits=options.bits,
            draft_bits=options.draft_bits,
            **placed,
        )
    began = time.perf_counter()
    loading = f"loading {options.target}" + (f" and {options.draft}" if options.draft else "")
    with contextlib.ExitStack() as stack:
        if all(name is None or Path(name).exists() for name in (options.target, options.draft)):
            stack.enter_context(Bar(loading))
        else:  # the hub has bars of its own
            note(loading)
        pair = ModelPair.from_pretrained(
            options.target,
            options.draft,
            dtype=options.dtype,
            bits=options.bits,
            draft_bits=options.draft_bits,
            **placed,
            check=lambda *models: _check_memory(options, *models),
            revision=options.revision,
            draft_revision=options.draft_revision,
            tokenizer=options.tokenizer,
        )
    note(f"loaded in {time.perf_counter() - began:.0f} s: {_describe(pair)}")
    return pair


def _describe(pair) -> str:
    """What the models are kept as, and by what they are multiplied."""
    import jax

    from kljudge_jax.kernels.cpu_library import library

    by = f", {library().reason}" if jax.default_backend() == "cpu" and pair.target.storage.local else ""
    return f"{pair.precision} on {jax.default_backend()}{by}"


def _check_memory(options, placement, target, draft, dtype) -> None:
    """Refuses, before minutes go into loading it, what fits with no prompts. A run checks its own again."""
    import jax
    import jax.numpy as jnp

    from kljudge_jax.generation.memory_plan import Model, check_fits
    from kljudge_jax.parallel.free_memory import usable_memory

    caches = jnp.float32 if jax.default_backend() == "cpu" else dtype  # as `KVCache.create` has it
    check_fits(
        Model(target, placement.target(target), dtype, caches, options.bits),
        None if draft is None else Model(draft, placement.draft(draft), dtype, caches, options.draft_bits),
        least_workload(options, draft is not None),
        usable_memory(placement.mesh),
        at_least=True,
    )


def least_workload(options, drafts: bool):
    """The largest of what a command will decode at once, with prompts of one token, for they are not known yet."""
    from kljudge_jax.drafters.words import parse_draft_length
    from kljudge_jax.generation.memory_plan import Workload

    def numbers(name: str) -> list[int]:
        given = getattr(options, name, None)
        return [] if given is None else [given] if isinstance(given, int) else whole_numbers(f"--{name}", given)

    lengths = numbers("draft_lengths")
    if (word := getattr(options, "draft_length", None)) is not None:
        length = word if isinstance(word, int) else parse_draft_length(word)
        lengths.append(length if isinstance(length, int) else length.maximum)
    return Workload(
        batch=max(numbers("batch"), default=1),
        prompt_tokens=1,
        max_new_tokens=getattr(options, "max_new_tokens", None) or 1,
        draft_length=max(lengths, default=1) if drafts else 0,
        sampling=bool(getattr(options, "temperature", 0)),
    )


def as_model_reads(task, spec: str, pair, run_code: bool = False):
    """The task, asked as text where the model has no chat template."""
    from kljudge_jax.tasks import load_task

    return task if getattr(pair.tokenizer, "chat_template", None) else load_task(spec, chat=False, run_code=run_code)


def add_run_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-code",
        action="store_true",
        help="run the code that the models write, confined, to check humaneval and mbpp",
    )


def load_checked_task(spec: str, run_code: bool):
    """The task, refused before minutes go into loading a model if its answers cannot be checked."""
    from kljudge_jax.tasks import load_task

    task = load_task(spec, run_code=run_code)
    if getattr(task, "run_code", None) is False:  # tasks that run nothing have no such switch
        raise InputError(f"checking {task.name} runs code that the models write: allow it with --run-code")
    return task


def add_bits(parser: argparse._ActionsContainer) -> None:
    """`--bits` and `--draft-bits`: a number, or the word for those of the file."""

    def bits(word: str) -> int | str:
        return int(word) if word.isdecimal() else word

    parser.add_argument(
        "--bits",
        type=bits,
        choices=(8, 4, "file"),
        help="round the target's matrices to so many bits as they are loaded, or leave them in those of a .gguf file",
    )
    parser.add_argument("--draft-bits", type=bits, choices=(8, 4, "file"), help="the same for the draft")


def add_drafting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft-length",
        metavar="LENGTH",
        default="8",
        help="draft tokens a cycle: a number, or adaptive:maximum=8 (as many as pay, by the time that "
        "cycles take), or adaptive:maximum=8,cost=size (by the sizes of the models)",
    )
    add_drafter(parser)


def add_drafter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drafter",
        metavar="DRAFTER",
        default="model",
        help="what proposes: model (--draft), lookup:3 (n-grams of the text), self:2 (the target's first layers)",
    )


def check_drafter(options, drafter) -> None:
    """Raises `InputError` where the drafter needs a draft model and none is named."""
    if drafter.uses_draft_model and not has_draft(options):
        raise InputError("name a --draft, or draft without one: --drafter lookup, --drafter self:2")


def has_draft(options) -> bool:
    """Whether the models named include a draft."""
    return options.draft is not None or options.target == EMBEDDED


def split_rules(text: str) -> list[str]:
    """Rules from their words. A comma before a word parts two rules; one before `name=` or a number does not.

    `kl:0.1/0.4` stands for `kl:0.1` and `kl:0.4`.
    """
    rules: list[str] = []
    for rule in re.split(r",(?=\s*[a-z_]+\s*(?:[:,]|$))", text):
        name, _, rest = rule.strip().partition(":")
        settings = rest.split("/")
        several = len(settings) > 1 and all(re.fullmatch(r"\s*[-+.\de]+\s*", each) for each in settings)
        rules += [f"{name}:{each.strip()}" for each in settings] if several else [rule.strip()]
    return rules


def whole_numbers(option: str, text: str) -> list[int]:
    """The numbers of `8,24`; raises `InputError` where there are none."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas, got {text!r}") from None


def note(line: str) -> None:
    """A line for the person who waits; programs that read us see none."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)

"""What the sub-commands share: options of several, the pair they load, notes to the person who waits."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kljudge_jax.commands.command import (
    DRAFT,
    EMBEDDED,
    EMBEDDED_HEAD,
    FAILED,
    FILE,
    MODEL,
    OK,
    Option,
    Text,
    Whole,
    flag,
    option,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError
from kljudge_jax.generation.config import DEFAULTS, DecodingConfig

SPLITS = ("train", "validation", "test", "all")

# Where models lie.
MESH = (
    option("--mesh", "devices to spread the models over, such as data=2,tensor=4", group="Models", metavar="SPEC"),
    option(
        "--axes",
        "what of the target lies on which axis of the mesh, where not as usual: vocab=none,batch=data+fsdp",
        group="Models",
        metavar="AXES",
    ),
    option(
        "--draft-axes",
        "the same of the draft: replicated, target (as the target lies), or axes; by default what takes less time",
        group="Models",
        metavar="AXES",
    ),
)

_BITS = click.Choice((8, 4, "file"))
BITS = (
    option(
        "--bits",
        "round the target's matrices to so many bits as they are loaded, or leave them in those of a .gguf file",
        group="Models",
        type=_BITS,
    ),
    option("--draft-bits", "the same for the draft", group="Models", type=_BITS),
)

DRAFT_VOCAB = option(
    "--draft-vocab",
    "cut the draft's head to these tokens, a text file with one id a line: fewer bytes are read for a draft token",
    group="Models",
    type=FILE,
)

REVISION = option("--revision", "branch, tag or commit of the target on the hub", group="Models", metavar="REV")
RUN_CODE = flag("--run-code", "run the code that the models write, confined, to check humaneval and mbpp")


def dtype_option(default: str = "auto", help: str = "of the weights") -> Option:
    """`--dtype`."""
    if default == "auto":
        help += "; auto is bfloat16; on a CPU without a C++ compiler the faster of bfloat16 and float32"
    choices = ("auto", "float32", "bfloat16", "float16")
    return option("--dtype", help, group="Models", type=click.Choice(choices), default=default)


def model_options(required: bool = True, hosts: bool = True) -> tuple[Option, ...]:
    """Which models, in what precision, and where: what `load_pair` reads.

    A command that runs on one host, without `hosts`, does not show the options of several, which it refuses.
    """
    group, several = "Models", {"group": "Models", "hidden": not hosts}
    return (
        option(
            "--target",
            "the large model, whose answers are wanted: a hub id, a local folder (safetensors or Orbax) or a .gguf "
            "file; `embedded` is the pair of the package",
            group=group,
            type=MODEL,
            required=required,
        ),
        option(
            "--draft",
            "the small model that proposes, or a head of the target; not needed for `none`; `embedded:head` is that of "
            "the package's target",
            group=group,
            type=DRAFT,
        ),
        DRAFT_VOCAB,
        REVISION,
        option("--draft-revision", "the same for the draft", group=group, metavar="REV"),
        option("--tokenizer", "where to find the tokenizer, if not with the target", group=group, type=MODEL),
        dtype_option(),
        *BITS,
        option(
            "--cache-bits",
            "keep keys and values in 8 bits, with a scale a head and position: half the bytes of bfloat16",
            group=group,
            type=click.Choice([8]),
        ),
        *MESH,
        option(
            "--hosts",
            "run on several hosts, each with this command: auto where the cluster says which (TPU pod, Slurm, "
            "Kubernetes), or how many, with --coordinator and --host; name a --mesh of all their devices",
            **several,
        ),
        option("--coordinator", "of the first host", metavar="ADDRESS:PORT", **several),
        option("--host", "which host this is, from 0", type=int, **several),
        option("--patience", "seconds after which a silent host ends the run", type=Whole(), default=60, **several),
    )


_CONFIG = {field.name: field for field in dataclasses.fields(DecodingConfig)}
_TYPES = {
    "draft_length": Text("LENGTH"),
    "drafter": Text("DRAFTER", ("model", "lookup", "self")),
    "stop": Text("TEXT"),
    "section_ids": Text("IDS", ("auto", "none")),
    "template_args": Text("NAME=VALUE"),
}
_REPEATED = ("stop", "template_args")
CHAT = ("section_ids", "template_args")
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")


def decoding_options(*names: str, call: str = "") -> tuple[Option, ...]:
    """The options of some fields of `DecodingConfig`, with the defaults of a call."""
    made = []
    for field in (_CONFIG[name] for name in names):
        kind: click.ParamType | None = _TYPES.get(field.name)
        if "least" in field.metadata:
            kind = Whole(field.metadata["least"], field.metadata.get("most"))
        settings: dict[str, Any] = {"type": kind, "multiple": field.name in _REPEATED}
        settings["default"] = DEFAULTS.get(call, {}).get(field.name, field.default)
        # One argument each time.
        name = "--template-arg" if field.name == "template_args" else f"--{field.name.replace('_', '-')}"
        made.append(Option([name, field.name], help=field.metadata["help"], group="Decoding", **settings))
    return tuple(made)


def decoding_config(options, **changes: Any) -> DecodingConfig:
    """The configuration that a command's options make, with `changes`."""
    given = {name: getattr(options, name) for name in _CONFIG if hasattr(options, name)}
    return DecodingConfig(**(given | changes))


def placement_of(options):
    """Where the options put the models."""
    from kljudge_jax.parallel.placement import Placement

    return Placement.parse(options.mesh, options.axes, options.draft_axes)


def load_pair(options, **changes: Any):
    """The pair that the options name, with changes to what `ModelPair.from_pretrained` is told."""
    from kljudge_jax import ModelPair

    names = ("draft_vocab", "mesh", "axes", "draft_axes", "bits", "draft_bits", "cache_bits")
    # A command that trains a draft asks for none.
    loaded = {name: getattr(options, name, None) for name in names} | changes
    draft, draft_revision = getattr(options, "draft", None), getattr(options, "draft_revision", None)
    if options.target == EMBEDDED:
        if options.tokenizer or options.revision or draft_revision:
            raise InputError("--target embedded brings its own tokenizer, and has no revisions: name but a --draft")
        dtype = "float32" if options.dtype == "auto" else options.dtype
        usual = EMBEDDED if hasattr(options, "draft") else None
        return ModelPair.embedded(draft=draft or usual, dtype=dtype, **loaded)
    if draft in (EMBEDDED, EMBEDDED_HEAD) and not Path(draft).exists():
        raise InputError(f"{draft} drafts for --target embedded alone: name a draft of {options.target}")
    began = time.perf_counter()
    loading = f"loading {options.target}" + (f" and {draft}" if draft else "")
    with contextlib.ExitStack() as stack:
        if all(name is None or Path(name).exists() for name in (options.target, draft)):
            stack.enter_context(Bar(loading))
        else:  # the hub has bars of its own
            note(loading)
        pair = ModelPair.from_pretrained(
            options.target,
            draft,
            dtype=options.dtype,
            revision=options.revision,
            draft_revision=draft_revision,
            tokenizer=options.tokenizer,
            check=lambda *models: _check_memory(options, *models),
            **loaded,
        )
    note(f"loaded in {time.perf_counter() - began:.0f} s: {_describe(pair)}")
    return pair


def _describe(pair) -> str:
    """What the models are kept as, and by what they are multiplied."""
    from kljudge_jax.kernels.cpu_library import library
    from kljudge_jax.kernels.place import Place

    place = pair.target.storage.place
    by = f", {library().reason}" if place == Place("cpu") else ""
    return f"{pair.precision} on {place.platform}{by}"


def _check_memory(options, placement, target, draft, dtype) -> None:
    """Refuses, before minutes go into loading it, what fits with no prompts. A run checks its own again."""
    from kljudge_jax.generation.memory_plan import Model, check_fits
    from kljudge_jax.kernels.place import default_platform
    from kljudge_jax.models.cache import cache_dtype
    from kljudge_jax.parallel.free_memory import usable_memory

    caches = cache_dtype(dtype, default_platform())
    check_fits(
        Model(target, placement.target(target), dtype, caches, options.bits, options.cache_bits),
        None
        if draft is None
        else Model(draft, placement.draft(draft), dtype, caches, options.draft_bits, options.cache_bits),
        least_workload(options, draft is not None),
        usable_memory(placement.mesh),
        at_least=True,
    )


def least_workload(options, drafts: bool):
    """The largest of what a command will decode at once, with prompts of one token, for they are not known yet."""
    from kljudge_jax.drafters.specs import parse_draft_length
    from kljudge_jax.generation.memory_plan import Workload

    batch = getattr(options, "batch", None) or 1
    asked = getattr(options, "draft_lengths", None) or [getattr(options, "draft_length", 1)]
    lengths = [parse_draft_length(str(length)) for length in asked]
    return Workload(
        batch=batch if isinstance(batch, int) else max(batch),
        prompt_tokens=1,
        max_new_tokens=getattr(options, "max_new_tokens", None) or 1,
        draft_length=max(one if isinstance(one, int) else one.maximum for one in lengths) if drafts else 0,
        sampling=bool(getattr(options, "temperature", 0)),
    )


def as_model_reads(task, spec: str, pair, run_code: bool = False):
    """The task, asked as text where the model has no chat template."""
    from kljudge_jax.tasks import load_task

    return task if getattr(pair.tokenizer, "chat_template", None) else load_task(spec, chat=False, run_code=run_code)


def load_checked_task(spec: str, run_code: bool):
    """The task, refused before minutes go into loading a model if its answers cannot be checked."""
    from kljudge_jax.tasks import load_task

    task = load_task(spec, run_code=run_code)
    if getattr(task, "run_code", None) is False:  # tasks that run nothing have no such switch
        raise InputError(f"checking {task.name} runs code that the models write: allow it with --run-code")
    return task


def check_drafter(config: DecodingConfig, has_draft: bool, name: str = "a --draft", rules: Sequence[Any] = ()) -> None:
    """Raises `InputError` where the drafter needs a draft model and none is named, or rules cannot be used with it."""
    from kljudge_jax.generation.arguments import check_compared

    assert not isinstance(config.drafter, str)  # it has been read
    if getattr(config.drafter, "uses_draft_model", True) and not has_draft:
        raise InputError(f"name {name}, or draft without one: --drafter lookup, --drafter self:2")
    for rule in rules:
        check_compared(rule, config.drafter)


def has_draft(options) -> bool:
    """Whether the models named include a draft."""
    return options.draft is not None or options.target == EMBEDDED


def status_of(options, failed: int) -> int:
    """The exit status of a command in so many of whose answers a model failed, which is told."""
    if failed:
        print(f"kljudge {options.command}: a model returned NaN or +inf in {failed} answers", file=sys.stderr)
    return FAILED if failed else OK


def note(line: str) -> None:
    """A line for the person who waits; programs that read us see none."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)

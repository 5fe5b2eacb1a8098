"""`kljudge plan`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util

import click

from kljudge_jax.commands.command import FAILED, FILE, MODEL, OK, RULE, Whole, command, flag, option
from kljudge_jax.commands.options import MESH, decoding_config, decoding_options, dtype_option, note
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.plan.quiet_start import quiet_start

if importlib.util.find_spec("jax_cuda12_plugin") is not None:
    # JAX, which the defaults of options import, loads the plugin's libraries: they say that they find no card.
    with quiet_start():
        importlib.import_module("jax")

_BITS = click.Choice((8, 4))


@command(
    "Say what a pair will take of each device, and which batch fits, before anything is loaded: worked out, or, with "
    "--topology, as the compiler of chips that are not here says.",
    [
        option(
            "--target",
            "a published shape such as llama-3.1-8b, a hub id, a folder, a .gguf file, or `embedded`, the package's; "
            "of its weights none is read",
            type=MODEL,
        ),
        option(
            "--draft",
            "the same of the draft, a head's folder, or a head of the target's sizes such as eagle3:vocab=32000; none "
            "is plain decoding",
            type=MODEL,
        ),
        option(
            "--draft-vocab",
            "the tokens that the draft's head is cut to, a text file with one id a line, or how many",
            group="Models",
            type=FILE,
        ),
        option("--topology", "compile for these devices, such as v5e:2x4", metavar="KIND:SIZE"),
        *MESH,
        dtype_option("bfloat16", "of weights and caches"),
        option("--bits", "round the target's matrices to so many bits", group="Models", type=_BITS),
        option("--draft-bits", "the same for the draft", group="Models", type=_BITS),
        option("--cache-bits", "keep keys and values in 8 bits", group="Models", type=click.Choice([8])),
        option("--device", "v5e, v5p, v6e, h100 or h200, for its memory, without --topology"),
        option("--memory", "GB of one device, in place of --device", type=float),
        option("--verifier", "the rule", type=RULE, default="kl:0.4", group="Decoding"),
        *decoding_options("batch", call="plan"),
        option(
            "--prompt-tokens", "of the longest prompt: 512, or what the models take beside the answer", type=Whole()
        ),
        option("--context", "tokens of a row that attention reads, with --topology", type=Whole(), default=None),
        *decoding_options("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "draft_length", "drafter"),
        flag("--table", "print the table of published pairs and machines instead"),
        flag("--json", "print the plan as JSON; with --topology"),
    ],
    "  kljudge plan --target llama-3.1-8b --draft llama-3.2-1b --topology v5e:2x2 --batch 8\n"
    "  kljudge plan --target llama-3.1-70b --draft llama-3.1-8b --mesh tensor=8 --device h100 --batch 32\n"
    "  kljudge plan --target llama-3.1-8b --mesh data=4,tensor=4 --memory 16\n"
    "  kljudge plan --table",
)
def plan(options) -> int:
    from kljudge_jax.evaluation.memory_table import memory_table
    from kljudge_jax.generation.memory_plan import DEVICES, USUAL_PROMPT, Workload

    config = decoding_config(options)
    reads_draft = getattr(config.drafter, "uses_draft_model", True)
    if options.topology is None and not reads_draft:
        options.draft = None
    workload = Workload(
        config.batch or 1,
        options.prompt_tokens or USUAL_PROMPT,
        config.max_new_tokens,
        config.longest if options.draft is not None or not reads_draft else 0,
        sampling=not config.greedy,
    )
    if options.topology is None and options.json:
        raise InputError("--json is of a plan with --topology: leave it out")
    if options.topology is None and options.context is not None:
        raise InputError("--context is of a plan with --topology: leave it out")
    if options.table and options.topology is not None:
        raise InputError("--table is of published machines: leave out --topology")
    if options.table:
        print(memory_table(dataclasses.replace(workload, draft_length=config.longest)), end="")
        return OK
    if options.target is None:
        raise InputError("name a --target such as llama-3.1-8b, or ask for the --table")
    if options.topology is not None:
        if options.device is not None or options.memory is not None:
            raise InputError("--topology says what memory its devices have: leave out --device and --memory")
        return _compiled(options, config)
    if options.device is not None and options.device not in DEVICES:
        raise InputError(f"--device is one of {', '.join(DEVICES)}, not {options.device!r}: or give its --memory in GB")
    if options.memory is not None and (options.device is not None or not options.memory > 0):
        raise InputError("give --memory as GB above 0, in place of --device")
    return _worked_out(options, workload)


def _compiled(options, config) -> int:
    import json
    import os

    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # nothing runs, so that no device of this machine is taken
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of a plugin that is only to compile
    with quiet_start():
        from kljudge_jax.evaluation.plan.plan import plan as compile_plan
        from kljudge_jax.parallel.topology import topology_devices

        topology_devices(options.topology)
        jax.devices()  # JAX looks for what is here when it is first asked
    names = ("topology", "mesh", "axes", "draft_axes", "dtype", "bits", "draft_bits", "cache_bits", "verifier")
    found = compile_plan(
        options.target,
        options.draft,
        prompt_tokens=options.prompt_tokens,
        context=options.context,
        config=config,
        report=lambda name: note(f"compiling {name}"),
        **{name: getattr(options, name) for name in names},
        draft_vocab=_vocab(options),
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else str(found), end="\n" if options.json else "")
    return OK if found.fits else FAILED


def _vocab(options) -> str | int | None:
    """A list of tokens, or how many."""
    given = options.draft_vocab
    return int(given) if given is not None and given.isdecimal() else given


def _worked_out(options, workload) -> int:
    from kljudge_jax.evaluation.memory_table import planned
    from kljudge_jax.generation.memory_plan import (
        DEVICES,
        gigabytes,
        largest_batch,
        plan_memory,
        platform_of,
        usual_prompt,
    )
    from kljudge_jax.parallel.free_memory import USABLE

    names = ("target", "draft", "mesh", "dtype", "axes", "draft_axes", "bits", "draft_bits", "cache_bits")
    platform = platform_of(options.device) if options.device else None
    models = planned(platform=platform, draft_vocab=_vocab(options), **{name: getattr(options, name) for name in names})
    # A head is as long as the target: it turns by rope.
    configs = [model.config for model in models if model is not None and model.config is model.decoder]
    most_tokens = min(config.max_position for config in configs)
    if options.prompt_tokens is None:
        workload = dataclasses.replace(workload, prompt_tokens=usual_prompt(most_tokens, workload.max_new_tokens))
    tokens = workload.prompt_tokens + workload.max_new_tokens
    if tokens > most_tokens:
        raise InputError(f"--prompt-tokens and --max-new-tokens make {tokens}, and the models take {most_tokens}")
    plan = plan_memory(*models, workload)
    for field in dataclasses.fields(plan):
        print(f"{field.name.replace('_', ' '):<15}{gigabytes(getattr(plan, field.name)):>12}")
    print(f"{'on each device':<15}{gigabytes(plan.total):>12}")
    memory = DEVICES[options.device] if options.device else options.memory and options.memory * 1e9
    if memory is None:
        return OK
    limit = USABLE * memory
    most = largest_batch(*models, workload, limit)
    fits = plan.total <= limit
    verdict = "fits" if fits else "does not fit"
    also = (
        f"the largest batch that fits is {most}"
        if most
        else "no batch fits: spread it over more devices, or see --bits"
    )
    print(f"a batch of {workload.batch} {verdict} in {gigabytes(limit)} ({USABLE:.0%} of a device's memory); {also}")
    return OK if fits else FAILED

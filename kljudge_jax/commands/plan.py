"""`kljudge plan`."""

from __future__ import annotations

import dataclasses

from kljudge_jax.commands.command import FAILED, OK, Whole, command, flag, option
from kljudge_jax.commands.options import BITS, MESH, decoding_options, dtype_option
from kljudge_jax.errors import InputError


@command(
    "Say what a pair will take of each device's memory and which batch fits, before anything is loaded.",
    [
        option("--shape", "of the target: a published one such as llama-3.1-8b"),
        option("--draft-shape", "of the draft; none is plain decoding", metavar="SHAPE"),
        *MESH,
        dtype_option("bfloat16", "of weights and caches"),
        *BITS,
        option("--device", "v5e, v5p, v6e, h100 or h200, for its memory"),
        option("--memory", "GB of one device, in place of --device", type=float),
        option("--batch", "answers decoded side by side", type=Whole(), default=8),
        option("--prompt-tokens", "of the longest prompt", type=Whole(), default=512),
        *decoding_options("max_new_tokens"),
        option("--draft-length", "draft tokens a cycle", type=Whole(), default=8),
        flag("--sampling", "decode with a temperature above 0"),
        flag("--table", "print the table of published pairs and machines instead"),
    ],
    "  kljudge plan --shape llama-3.1-70b --draft-shape llama-3.1-8b --mesh tensor=8 --device h100 --batch 32\n"
    "  kljudge plan --shape llama-3.1-8b --mesh data=4,tensor=4 --memory 16\n"
    "  kljudge plan --table",
)
def plan(options) -> int:
    from kljudge_jax.evaluation.memory_table import memory_table, planned
    from kljudge_jax.generation.memory_plan import (
        DEVICES,
        Workload,
        gigabytes,
        largest_batch,
        plan_memory,
    )
    from kljudge_jax.parallel.free_memory import USABLE

    counts = ("batch", "prompt_tokens", "max_new_tokens", "draft_length")
    workload = Workload(sampling=options.sampling, **{name: getattr(options, name) for name in counts})
    if options.table:
        print(memory_table(workload), end="")
        return OK
    if options.shape is None:
        raise InputError("name a --shape such as llama-3.1-8b, or ask for the --table")
    if options.draft_shape is None:
        workload = dataclasses.replace(workload, draft_length=0)
    if options.device is not None and options.device not in DEVICES:
        raise InputError(f"--device is one of {', '.join(DEVICES)}, not {options.device!r}: or give its --memory in GB")
    if options.memory is not None and (options.device is not None or not options.memory > 0):
        raise InputError("give --memory as GB above 0, in place of --device")
    models = planned(
        options.shape,
        options.draft_shape,
        options.mesh,
        options.dtype,
        options.axes,
        options.draft_axes,
        options.bits,
        options.draft_bits,
    )
    tokens = workload.prompt_tokens + workload.max_new_tokens
    most_tokens = min(model.config.max_position for model in models if model is not None)
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

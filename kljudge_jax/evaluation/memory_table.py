"""The memory plans of published pairs on machines that can be rented: the table of the documentation."""

from __future__ import annotations

import dataclasses

from kljudge_jax.generation.memory_plan import DEVICES, Model, Workload, gigabytes, largest_batch, plan_memory
from kljudge_jax.models.draft_vocab import DraftVocab, check_draft_vocab, head_rows
from kljudge_jax.models.named_config import named_pair
from kljudge_jax.models.weights import resolve_dtype
from kljudge_jax.parallel.free_memory import USABLE
from kljudge_jax.parallel.mesh import parse_mesh
from kljudge_jax.parallel.placement import Placement

PAIRS = (
    ("llama-3.1-8b", "llama-3.2-1b"),
    ("llama-3.1-70b", "llama-3.1-8b"),
    ("llama-3.1-405b", "llama-3.1-8b"),
)

# A v5p-8 is eight cores: four chips, each one device.
MACHINES = (
    ("v5e-16", "v5e", ("data=4,tensor=4", "data=2,tensor=8", "tensor=16")),
    ("v5p-8", "v5p", ("data=4", "data=2,tensor=2", "tensor=4")),
    ("8x H100", "h100", ("data=8", "data=2,tensor=4", "tensor=8")),
    ("8x H200", "h200", ("data=8", "data=2,tensor=4", "tensor=8")),
)


def planned(
    target: str,
    draft: str | None,
    mesh: str | None,
    dtype: str = "bfloat16",
    axes: str | None = None,
    draft_axes: str | None = None,
    bits: int | str | None = None,
    draft_bits: int | str | None = None,
    cache_bits: int | None = None,
    platform: str | None = None,
    draft_vocab: DraftVocab | int | None = None,
) -> tuple[Model, Model | None]:
    """Target and draft, by what `named_pair` takes, on a mesh of devices that need not be here.

    Raises:
      InputError: no such model, mesh, dtype or axes.
    """
    placement, wanted = Placement.parse(mesh, axes, draft_axes, devices=False), resolve_dtype(dtype)
    ours, theirs = named_pair(target, draft)
    rows = head_rows(draft_vocab, ours.vocab_size)
    check_draft_vocab(draft_vocab, theirs)
    large = Model(ours, placement.target(ours), wanted, bits=bits, cache_bits=cache_bits, platform=platform)
    if theirs is None:
        return large, None
    small = Model(theirs, placement.draft(theirs), wanted, bits=draft_bits, cache_bits=cache_bits, platform=platform)
    return large, dataclasses.replace(small, head_rows=rows)


def memory_table(workload: Workload) -> str:
    """The table in Markdown: of each pair and machine the mesh that takes the largest batch."""
    lines = [
        "| target, draft | machine | mesh | weights | caches | prefill | cycle | total of | largest batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, draft in PAIRS:
        for machine, device, meshes in MACHINES:
            memory = DEVICES[device]
            limit = USABLE * memory
            plans = []
            for mesh in meshes:
                models = planned(target, draft, mesh, "bfloat16")
                plans.append((largest_batch(*models, workload, limit), mesh, models))
            most, mesh, models = max(plans, key=lambda plan: plan[0])
            if not most:  # the mesh that comes closest
                most, mesh, models = min(plans, key=lambda plan: plan_memory(plan[2][0], plan[2][1], workload).total)
            plan = plan_memory(models[0], models[1], workload)
            parts = (plan.target_weights + plan.draft_weights, plan.caches, plan.prefill, plan.cycle)
            cells = [f"{target}, {draft}", f"{machine} ({_count(mesh)} of {memory / 1e9:.0f} GB)", mesh]
            cells += [gigabytes(part) for part in parts]
            cells += [gigabytes(plan.total), str(most) if most else "does not fit"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _count(mesh: str) -> int:
    total = 1
    for size in parse_mesh(mesh).values():
        total *= size
    return total

"""What a bench runs on: pairs with random weights, if they fit in memory, and prompts of much the same length."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench.batch import Plan
from kljudge_jax.generation.memory_plan import Model, Workload, plan_memory
from kljudge_jax.kernels.place import default_platform
from kljudge_jax.models.cache import cache_dtype
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.eagle3 import Eagle3Config
from kljudge_jax.models.leaves import dtype_of
from kljudge_jax.models.linear import FILE, Storage
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.shapes import (
    bytes_per_device,
    draft_shape,
    is_head_shape,
    random_head,
    random_model,
    shape_config,
)
from kljudge_jax.models.weights import resolve_dtype
from kljudge_jax.parallel.free_memory import usable_memory
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.tasks.base import Task


def random_pair(
    target: str,
    draft: str | None,
    dtype: str,
    placement: Placement,
    plan: Plan,
    prompt_tokens: int,
    bits: int | str | None = None,
    draft_bits: int | str | None = None,
) -> ModelPair:
    """A pair of published shapes with random weights; the larger vocabulary is cut to the smaller. The draft may be a
    head's shape, such as "eagle3:vocab=32000".

    Raises:
      InputError: no such shape, or weights and caches do not fit in memory; nothing is made then.
    """
    _check_bits(bits, draft_bits)
    ours = shape_config(target)
    if draft is not None and not is_head_shape(draft):
        ours = dataclasses.replace(ours, vocab_size=min(ours.vocab_size, shape_config(draft).vocab_size))
    configs = {"target": ours} | ({} if draft is None else {"draft": draft_shape(draft, ours)})
    wanted = resolve_dtype(dtype)
    kept = {
        role: Storage(wanted, rounded, getattr(placement, role)(configs[role]))
        for role, rounded in (("target", bits), ("draft", draft_bits))
        if role in configs
    }
    # Each rule's run keeps its caches, and one of them at a time is copied.
    states = sum(plan.batches) * len(plan.rules) + max(plan.batches)
    caches = cache_dtype(wanted, default_platform())
    shapes = {
        role: Model(config, kept[role].layout, wanted, caches, kept[role].bits) for role, config in configs.items()
    }
    decoded = Workload(states, prompt_tokens, plan.config.max_new_tokens, plan.config.longest if draft else 0)
    held = plan_memory(shapes["target"], shapes.get("draft"), decoded)
    check_memory(held.target_weights + held.draft_weights, held.caches, placement)
    models = {role: _random(config, kept[role], seed) for seed, (role, config) in enumerate(configs.items())}
    return ModelPair(models["target"], models.get("draft"), None, (), target, draft or "none")


def with_random_draft(pair: ModelPair, draft: str, placement: Placement, bits: int | str | None = None) -> ModelPair:
    """The pair with a draft of a published shape, or of a head's, random weights, and the target's vocabulary and
    dtype."""
    _check_bits(bits)
    config = draft_shape(draft, pair.target.config)
    storage = Storage(dtype_of(pair.target), bits, placement.draft(config))
    check_memory(bytes_per_device(config, storage), 0, placement)
    return dataclasses.replace(pair, draft=_random(config, storage, 1), draft_name=draft)


def _random(config: TransformerConfig | Eagle3Config, storage: Storage, seed: int) -> Any:
    make: Any = random_head if isinstance(config, Eagle3Config) else random_model
    return make(config, storage, seed)


def _check_bits(*asked: int | str | None) -> None:
    if FILE in asked:
        raise InputError(f"random weights come from no file whose bits could be kept: give 8 or 4, not {FILE}")


def check_memory(weights: int, caches: int, placement: Placement) -> None:
    """Raises InputError, with the numbers, where so many bytes a device do not fit in what each has left."""
    free = usable_memory(placement.mesh)
    if free is not None and weights + caches > free:
        raise InputError(
            f"weights of {weights / 1e9:.1f} GB and caches of {caches / 1e9:.1f} GB do not fit in the "
            f"{free / 1e9:.1f} GB that are free: choose a smaller shape, its first layers (such as :layers=4), "
            "--dtype bfloat16, --bits 8 or a smaller --batch"
        )


def random_prompts(pair: ModelPair, count: int, length: int, seed: int) -> list[np.ndarray]:
    """Prompts of random token ids, int32 `[length]` each."""
    ids = np.random.default_rng(seed).integers(0, pair.target.vocab_size, (count, length))
    return list(ids.astype(np.int32))


def near_prompts(task: Task, split: str, count: int) -> list[Any]:
    """Prompts of a split of a task, near to its first in length, so that they share compiled programs."""
    try:
        problems = task.problems(split=split, n=4 * count)
    except InputError:  # it holds fewer
        problems = task.problems(split=split, n=count)
    first = _length(problems[0])
    near = sorted(range(len(problems)), key=lambda i: abs(_length(problems[i]) - first))[:count]
    return [problems[i].prompt for i in near]


def _length(problem) -> int:
    prompt = problem.prompt
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)

"""The core's functions as compiled programs that the host calls again and again: models packed, states donated."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from kljudge_jax.core import loop
from kljudge_jax.core.protocols import Drafter, Models
from kljudge_jax.core.state import LoopState, Numbers, Shape
from kljudge_jax.models.flat_model import FlatModel, unflatten
from kljudge_jax.verification.base import Verifier

_STATIC = ("drafter", "shape")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "slots"))
def start(
    target: FlatModel,
    draft: FlatModel | None,
    rule: Verifier,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    numbers: Numbers,
    shared: jax.Array | int = 0,
    *,
    drafter: Drafter | None,
    shape: Shape,
    slots: int | None = None,
) -> LoopState:
    """`core.init`."""
    models = Models(unflatten(target), unflatten(draft))
    return loop.init(models, drafter, rule, prompts, lengths, keys, numbers, shape=shape, slots=slots, shared=shared)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def run_cycles(
    target: FlatModel,
    draft: FlatModel | None,
    rule: Verifier,
    state: LoopState,
    numbers: Numbers,
    halted: jax.Array,
    max_cycles: jax.Array,
    enough: jax.Array | np.integer | int = loop.UNBOUNDED,
    *,
    drafter: Drafter | None,
    shape: Shape,
) -> LoopState:
    """`core.decode`, after the rows `halted` bool `[B]` were stopped. `state` is donated."""
    models = Models(unflatten(target), unflatten(draft))
    state = dataclasses.replace(state, running=state.running & ~halted)
    return loop.decode(models, drafter, rule, state, numbers, shape=shape, max_cycles=max_cycles, enough=enough)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def refill(
    target: FlatModel,
    draft: FlatModel | None,
    rule: Verifier,
    state: LoopState,
    entries: loop.Entries,
    numbers: Numbers,
    count: jax.Array | np.integer,
    shared: jax.Array | np.integer | int = 0,
    *,
    drafter: Drafter | None,
    shape: Shape,
) -> LoopState:
    """`core.admit`. `state` is donated."""
    models = Models(unflatten(target), unflatten(draft))
    return loop.admit(models, drafter, rule, state, entries, numbers, shape=shape, count=count, shared=shared)

"""Judge decoding as pure functions: `init`, `decode`, `admit`. They trace inside jit, scan and shard_map."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kljudge_jax.core.controller import Pace
from kljudge_jax.core.cycle import cycle, sections
from kljudge_jax.core.drafting import check_drafter
from kljudge_jax.core.prefill import enter_row, in_chunks, prefill
from kljudge_jax.core.protocols import Drafter, Models, check_methods, layers_of
from kljudge_jax.core.rows import repeated
from kljudge_jax.core.rule_check import check_registered, is_ours
from kljudge_jax.core.state import DONE, MAX_CYCLES, SLOTS, LoopState, Numbers, Shape
from kljudge_jax.core.target import check_rollback, new_cache
from kljudge_jax.core.verify import check_row_numbers, row_axes
from kljudge_jax.errors import InputError
from kljudge_jax.varying import varying_as
from kljudge_jax.verification.base import Verifier

# More than there are: cycles then run until the last row stops.
UNBOUNDED = np.iinfo(np.int32).max


class Entries(NamedTuple):
    """Prompts and where they go; as many places as there are rows B, so that any number makes one program.

    Attributes:
      prompts: int32 `[B, P]`, padded on the right.
      lengths: int32 `[B]`, at least 1.
      keys: `[B]`.
      budget: int32 `[B]`.
      rows: int32 `[B]`, the row of the state that each goes to.
    """

    prompts: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    keys: jax.Array
    budget: jax.Array | np.ndarray
    rows: jax.Array


def init(
    models: Models,
    drafter: Drafter | None,
    rule: Verifier,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    numbers: Numbers,
    *,
    shape: Shape,
    slots: int | None = None,
    shared: jax.Array | int = 0,
) -> LoopState:
    """Allocates all storage and consumes the prompts.

    Args:
      models: target, and what the drafter keeps its parameters in.
      drafter: what proposes; None is plain decoding.
      rule: the verification rule.
      prompts: int32 `[B, P]`, padded on the right.
      lengths: int32 `[B]`, at least 1.
      keys: PRNG keys, `[B]`.
      numbers: the data half of the run. A budget of more than the room of `shape` is cut to that.
      shape: the static half.
      slots: of each cache to begin with, at least P; None is all that a row may need.
      shared: int32 `[]`, how many tokens all prompts begin with alike, a multiple of the chunk of `shape.prefill`; they
        have one more in common, which a drafter is told of with the last of these.

    Raises:
      InputError: a model, a cache, a drafter or a rule does not keep to its protocol; the message names the method.
    """
    models = Models(*models)
    _check(models, drafter, rule, shape)
    check_row_numbers(rule, len(prompts))
    given = prompts, lengths, keys, numbers, shape, slots, shared
    if not all(plug is None or is_ours(plug) for plug in (*models, drafter, rule)):
        # What others' parts do wrong in a cycle is said here, before anything compiles.
        jax.eval_shape(
            lambda: cycle(models, drafter, rule, _begin(models, drafter, rule, *given), numbers, shape=shape)
        )
    return _begin(models, drafter, rule, *given)


def _begin(models, drafter, rule, prompts, lengths, keys, numbers, shape, slots, shared) -> LoopState:
    prompts, lengths = in_chunks(prompts, shape.prefill), jnp.asarray(lengths, jnp.int32)
    batch, width = prompts.shape
    capacity = shape.slots(width)
    if min(slots or capacity, capacity) < width:
        raise InputError(f"prompts take {width} slots, and a row has {min(slots or capacity, capacity)}: give it more")
    drafts = shape.scorer.drafts
    none = 0 * lengths  # buffers derive from what is given, so that they vary over devices as it does

    def buffer(dtype, size, fill=0):
        return jnp.broadcast_to(none[:, None].astype(dtype) + jnp.asarray(fill, dtype), (batch, size))

    cache = new_cache(models.target, batch, slots or capacity, "target")
    check_rollback(cache, shape.written - 1, "target")  # of a pass the first token is kept
    remembered = () if drafter is None else drafter.init(models, batch, slots or capacity)
    cache, remembered = varying_as((cache, remembered), lengths)
    cache, remembered = prefill(models, drafter, cache, remembered, prompts, lengths, shared, plan=shape.prefill)
    section = None
    if numbers.section_ids is not None:
        after = sections(none, prompts, numbers.section_ids)
        section = jnp.take_along_axis(after, lengths[:, None], axis=1)[:, 0]
    spare, cycles = shape.room + shape.draft_length + 1, shape.room + 1
    budget = jnp.minimum(jnp.broadcast_to(numbers.budget, none.shape), shape.room) + none
    state = LoopState(
        sequence=jnp.pad(prompts, ((0, 0), (0, capacity - width))),
        length=lengths,
        origin=buffer(jnp.int8, spare),
        count=none + 0,  # arrays of their own, for one who calls this outside of a trace may donate them
        cache=repeated(cache, drafts),
        drafter=repeated(remembered, drafts),
        carry=_new_carry(rule, none),
        section=section,
        running=budget > 0,
        failed=none > 0,
        alone=none > 0,
        keys=keys,
        budget=budget,
        pace=None if shape.controller is None else Pace.start(none),
        cycles=none + 0,
        cycle_drafted=buffer(jnp.int32, cycles),
        cycle_committed=buffer(jnp.int32, cycles),
        finish=none + MAX_CYCLES,
        kl=buffer(jnp.float32, spare) if shape.trace else None,
        logprobs=buffer(jnp.float32, spare) if shape.trace else None,
        sampled_logprobs=buffer(jnp.float32, spare) if shape.trace and not numbers.sampling.greedy else None,
    )
    return constrain(models, state)


def decode(
    models: Models,
    drafter: Drafter | None,
    rule: Verifier,
    state: LoopState,
    numbers: Numbers,
    *,
    shape: Shape,
    max_cycles: ArrayLike | None = None,
    enough: ArrayLike = UNBOUNDED,
) -> LoopState:
    """Runs cycles until every row has stopped, or the next cycle of one would not fit in the caches.

    Args:
      models, drafter, rule, numbers, shape: as in `init`; other numbers of the rule and of the run compile nothing.
      state: what `init`, `admit` or this returned.
      max_cycles: int32 `[]`, the most cycles; None is any number.
      enough: int32 `[]`, so many of the rows that ran have stopped, and it ends.

    Returns:
      the state, whose `finish` says why it ended.
    """
    models = Models(*models)
    most = jnp.asarray(UNBOUNDED if max_cycles is None else max_cycles, jnp.int32)
    began = jnp.sum(state.running)

    def fits(state):
        longest = jnp.max(jnp.where(state.running, state.length, 0))
        return longest + shape.written <= min(state.cache.slots, state.sequence.shape[1])

    def unfinished(carry):
        i, state = carry
        left = jnp.sum(state.running)
        return (i < most) & (left > 0) & (began - left < enough) & fits(state)

    def body(carry):
        i, state = carry
        return i + 1, constrain(models, cycle(models, drafter, rule, state, numbers, shape=shape))

    begin = varying_as(jnp.int32(0), state.count)
    _, state = jax.lax.while_loop(unfinished, body, (begin, state))
    unfit = jnp.where(fits(state), MAX_CYCLES, SLOTS)
    return dataclasses.replace(state, finish=jnp.where(state.running, unfit, DONE).astype(jnp.int32))


def admit(
    models: Models,
    drafter: Drafter | None,
    rule: Verifier,
    state: LoopState,
    entries: Entries,
    numbers: Numbers,
    *,
    shape: Shape,
    count: ArrayLike | None = None,
    shared: ArrayLike = 0,
) -> LoopState:
    """Consumes new prompts, each in place of a row that has stopped, one after another.

    What the state holds of other rows is not touched. A prompt alone is not padded to the length of another.

    Args:
      models, drafter, rule, numbers, shape: as in `init`.
      state: what `decode` returned.
      entries: the prompts.
      count: int32 `[]`, how many of the entries, the first ones; None is all.
      shared: as in `init`, of all prompts of the run: a row holds what they begin with from the prompt before.
    """
    models = Models(*models)
    drafts = shape.scorer.drafts
    entries = jax.tree.map(jnp.asarray, Entries(*entries))
    entries = entries._replace(prompts=in_chunks(entries.prompts, shape.prefill))
    width = entries.prompts.shape[1]
    slots = min(state.cache.slots, state.sequence.shape[1])
    if slots < width:
        raise InputError(f"prompts take {width} slots, and a row has {slots}: give it more")

    def enter(i, state):
        prompt, length, key, budget, row = jax.tree.map(lambda x: x[i], entries)
        budget = jnp.minimum(budget, shape.room)
        rows = tuple(row * drafts + d for d in range(drafts))
        cache, remembered = enter_row(
            models,
            drafter,
            state.cache,
            state.drafter,
            prompt,
            length,
            rows[0],
            rows,
            shared,
            state.failed[row],
            plan=shape.prefill,
        )

        def put(values, value):
            return values.at[row].set(value)

        section = state.section
        if section is not None:
            after = sections(0 * length[None], prompt[None], numbers.section_ids)
            section = put(section, after[0, length])
        carry = state.carry
        if carry is not None:
            carry = jax.tree.map(lambda x, new: put(x, new[row]), carry, _new_carry(rule, state.count))
        # Buffers of new tokens and of cycles are stale from `count` and `cycles` on, so they stay as they are.
        state = dataclasses.replace(
            state,
            sequence=jax.lax.dynamic_update_slice(state.sequence, prompt[None], (row, 0)),
            length=put(state.length, length),
            count=put(state.count, 0),
            cache=cache,
            drafter=remembered,
            carry=carry,
            section=section,
            running=put(state.running, budget > 0),
            failed=put(state.failed, False),
            alone=put(state.alone, False),
            keys=put(state.keys, key),
            budget=put(state.budget, budget),
            pace=None if state.pace is None else state.pace.entered(row),
            cycles=put(state.cycles, 0),
        )
        return constrain(models, state)

    return jax.lax.fori_loop(0, len(entries.prompts) if count is None else count, enter, state)


def constrain(models: Models, state: LoopState) -> LoopState:
    """The state as the models lie on a mesh: rows with the batch, each cache with its model."""
    ours = getattr(models.target, "constrain", None)
    if ours is None:
        return state
    theirs = getattr(models.draft, "constrain", ours)
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    drafter = theirs(fields.pop("drafter"))
    return LoopState(drafter=drafter, **ours(fields))


def _check(models: Models, drafter: Any, rule: Any, shape: Shape) -> None:
    check_methods(models.target, "target")
    if drafter is not None:
        check_drafter(drafter)
        most, wanted = getattr(models.target, "num_layers", 0), layers_of(drafter)
        if wanted and not 0 <= min(wanted) <= max(wanted) <= most:
            raise InputError(
                f"{type(drafter).__name__}.layers are {wanted}, and the target's Model.num_layers is {most}: "
                + (f"ask for some from 0 to {most}" if most else "it can be asked for none")
            )
        if shape.draft_length < 1:
            raise InputError("a drafter needs a Shape.draft_length from 1 on; plain decoding has the drafter None")
    elif shape.draft_length:
        raise InputError("plain decoding, with the drafter None, has a Shape.draft_length of 0")
    if not callable(rule):
        raise InputError(f"{rule!r} is no verification rule: see kljudge_jax.Verifier")
    check_registered(rule)


def _new_carry(rule: Any, rows: jax.Array) -> Any:
    """What a rule remembers of each row before its first token, for as many rows as int32 `rows` `[B]` has."""
    if not hasattr(rule, "init_carry"):
        return None
    leaves, structure = jax.tree.flatten(rule)

    def of_row(leaves, row):
        carry = jax.tree.unflatten(structure, leaves).init_carry()
        return jax.tree.map(lambda x: jnp.asarray(x) + row.astype(jnp.result_type(x)), carry)

    return jax.vmap(of_row, in_axes=(row_axes(rule), 0))(leaves, 0 * rows)

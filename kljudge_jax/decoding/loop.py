"""The decoding loop: draft, score, verify, commit, cycle after cycle on the device."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.decoding.adaptive import Costs, Pace
from kljudge_jax.decoding.drafter import Caches, Context, Draft, Models, Request
from kljudge_jax.decoding.run_if import run_if
from kljudge_jax.decoding.sampling import Sampling
from kljudge_jax.decoding.score import prefill
from kljudge_jax.decoding.state import DRAFT, RELAXED, TARGET, LoopState, Settings
from kljudge_jax.decoding.verify import Outcome, verify_drafts
from kljudge_jax.models.cache import KVCache, write_rows
from kljudge_jax.models.packed import Packed, unpack
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.verification.base import Verifier

# More rows than there are: cycles then run until the last row stops.
NEVER_ENOUGH = np.iinfo(np.int32).max


@functools.partial(jax.jit, static_argnames=("slots", "settings"))
def start(
    target: Packed | Transformer,
    draft: Packed | Transformer | None,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    budget: jax.Array,
    shared_chunks: jax.Array | int = 0,
    slots: int | None = None,
    *,
    settings: Settings,
) -> LoopState:
    """Allocates all storage and consumes the prompts.

    Args:
      target: the model that judges.
      draft: the model that proposes, or None.
      prompts: int32 `[B, P]`, padded on the right.
      lengths: int32 `[B]`, at least 1.
      keys: `[B]`.
      budget: int32 `[B]`, new tokens wanted, at most `settings.room`.
      shared_chunks: int32 `[]`, what `count_shared_chunks` says of the prompts.
      slots: of each cache to begin with, at least P; None is `settings.capacity`.
      settings: the static half.
    """
    target, draft = unpack(target), unpack(draft)
    batch, width = prompts.shape

    def consumed(model):
        empty = KVCache.create(model.config, batch, slots or settings.capacity, model.dtype)
        empty = empty if model.layout is None else empty.placed(model.layout)
        cache = prefill(model, empty, prompts, lengths, shared_chunks)
        return jax.tree.map(lambda x: per_draft(x, settings), cache)

    def buffer(dtype, size=settings.room + settings.draft_length + 1):
        return jnp.zeros((batch, size), dtype)

    state = LoopState(
        sequence=jnp.pad(prompts, ((0, 0), (0, settings.capacity - width))),
        length=jnp.asarray(lengths, jnp.int32),
        origin=buffer(jnp.int8),
        count=jnp.zeros((batch,), jnp.int32),
        caches=Caches(consumed(target), None if draft is None else consumed(draft)),
        running=budget > 0,
        failed=jnp.zeros((batch,), bool),
        alone=jnp.zeros((batch,), bool),
        keys=keys,
        budget=budget,
        pace=None if settings.adaptive is None else Pace.start(batch),
        cycles=jnp.zeros((batch,), jnp.int32),
        cycle_drafted=buffer(jnp.int32, settings.room + 1),
        cycle_committed=buffer(jnp.int32, settings.room + 1),
        kl=buffer(jnp.float32) if settings.trace else None,
        logprobs=buffer(jnp.float32) if settings.trace else None,
    )
    return state.placed(Models(target, draft))


@functools.partial(jax.jit, static_argnames=("settings", "rule"), donate_argnames="state")
def run_cycles(
    target: Packed | Transformer,
    draft: Packed | Transformer | None,
    verifier: Verifier,
    sampling: Sampling,
    eos: jax.Array,
    state: LoopState,
    halted: jax.Array,
    max_cycles: jax.Array,
    enough: jax.Array | int = NEVER_ENOUGH,
    costs: Costs | None = None,
    *,
    settings: Settings,
    rule: type,
) -> LoopState:
    """Runs cycles until every row has stopped, or `enough` int32 `[]` of those that ran have, or the next cycle of one
    would not fit in the caches; `max_cycles` int32 `[]` at the most. `state` is donated.

    `eos` int32 `[E]` holds every id that ends an answer, and `halted` bool `[B]` the rows that the host stopped; an
    adaptive length needs `costs`; the other arguments are those of `cycle`. `rule` is the
    verifier's class: jit keys a program by the structure of its arguments, and jaxlib 0.10.2 takes the structures of
    two registered dataclasses with as many fields for equal.
    """
    del rule
    models = Models(unpack(target), unpack(draft))
    state = dataclasses.replace(state, running=state.running & ~halted)
    began = jnp.sum(state.running)

    def unfinished(carry):
        i, state = carry[:2]
        left = jnp.sum(state.running)
        return (i < max_cycles) & (left > 0) & (began - left < enough) & _fits(state, settings)

    def body(carry):
        i, state = carry
        return i + 1, cycle(models, verifier, sampling, eos, state, settings).placed(models)

    if settings.adaptive is None:
        return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]

    # While nothing is drafted a loop of its own runs, of cycles such as plain decoding has: what a draft passes
    # through, its buffers and the choice among passes of several widths, would cost every cycle a few per cent.
    def bounded(i, state):
        return i, state, settings.adaptive.bound(state.pace, costs, state.count, _left(state))

    def drafting(carry):
        i, state, bound = carry
        return bounded(i + 1, cycle(models, verifier, sampling, eos, state, settings, bound, costs).placed(models))

    def plain(carry):
        i, state, _ = carry
        return bounded(i + 1, plain_cycle(models, verifier, sampling, eos, state, settings, costs).placed(models))

    def plain_then_drafting(carry):
        carry = jax.lax.while_loop(lambda carry: unfinished(carry) & (carry[2] == 0), plain, carry)
        return run_if(unfinished(carry), drafting, carry)

    return jax.lax.while_loop(unfinished, plain_then_drafting, bounded(jnp.int32(0), state))[1]


def _fits(state: LoopState, settings: Settings) -> jax.Array:
    """Whether the caches have the slots that a cycle of the longest running row may write: bool `[]`."""
    longest = jnp.max(jnp.where(state.running, state.length, 0))
    return longest + settings.scorer.slots(settings.draft_length) <= state.caches.target.capacity


class Proposal(NamedTuple):
    """What a cycle puts before the target; B rows, D drafts a row.

    Attributes:
      draft: `[B D]` drafts.
      counts: int32 `[B D]`, how many tokens of each are real.
      last: int32 `[B D]`, each row's last committed token.
      wanted: int32 `[B]`, how many draft tokens a row could use.
      keys: `[B]`, what the verdicts draw with.
    """

    draft: Draft
    counts: jax.Array
    last: jax.Array
    wanted: jax.Array
    keys: jax.Array


def cycle(
    models: Models,
    verifier: Verifier,
    sampling: Sampling,
    eos: jax.Array,
    state: LoopState,
    settings: Settings,
    bound: jax.Array | None = None,
    costs: Costs | None = None,
) -> LoopState:
    """One draft, one target pass, one verdict a row, and the commit.

    An adaptive length needs `bound` int32 `[]`, the most draft tokens of a row in this cycle, and `costs`.
    """
    proposal, caches = propose(models, verifier, sampling, eos, state, settings, bound)
    outcome, target_cache = _verify(
        models.target, caches.target, verifier, sampling, proposal, state.length - 1, settings
    )
    return commit(state, Caches(target_cache, caches.draft), proposal.wanted, outcome, eos, settings, costs)


def plain_cycle(
    models: Models,
    verifier: Verifier,
    sampling: Sampling,
    eos: jax.Array,
    state: LoopState,
    settings: Settings,
    costs: Costs,
) -> LoopState:
    """A cycle of an adaptive length that drafts nothing: the rule draws one token a row."""
    _, verify_keys = _cycle_keys(state)
    last = per_draft(_last_token(state.sequence, state.length - 1), settings)
    tokens, hidden = jnp.zeros((last.shape[0], 0), jnp.int32), None
    if "draft_hidden" in getattr(verifier, "needs", frozenset()):
        model = models.target if models.draft is None else models.draft
        hidden = jnp.zeros((last.shape[0], 0, model.config.hidden_size), model.dtype)
    nothing = Draft(tokens, jnp.zeros_like(last), None, None, hidden)
    cache = state.caches.target.at_length(per_draft(state.length - 1, settings))
    outcome, cache = verify_drafts(
        models.target,
        cache,
        verifier,
        sampling,
        last,
        nothing,
        nothing.count,
        verify_keys,
        settings=settings,
        width=0,
    )
    wanted = jnp.zeros_like(state.count)
    return commit(state, Caches(cache, state.caches.draft), wanted, outcome, eos, settings, costs)


def propose(
    models: Models,
    verifier: Verifier,
    sampling: Sampling,
    eos: jax.Array,
    state: LoopState,
    settings: Settings,
    bound: jax.Array | None = None,
) -> tuple[Proposal, Caches]:
    """The first part of a cycle: a draft a row, or several, and the caches with what was consumed for it."""
    draft_keys, verify_keys = _cycle_keys(state)
    wanted = jnp.clip(_left(state), 0, settings.draft_length if bound is None else bound)
    context = Context(state.sequence, state.length - 1, wanted, draft_keys)
    draft, caches, last = _propose(models, verifier, sampling, state.caches, context, settings)

    is_eos = _is_any(draft.tokens, eos)
    count = jnp.minimum(jnp.minimum(draft.count, _through_first(is_eos)), per_draft(wanted, settings))
    return Proposal(draft, count, last, wanted, verify_keys), caches


def _cycle_keys(state: LoopState):
    """What each row's draft and its verdict draw with, keys `[B]` both."""
    # A row's draws depend on its own key and on how far it has come, never on its neighbours.
    cycle_keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(cycle_keys)


def _left(state: LoopState) -> jax.Array:
    """How many draft tokens each row can use, int32 `[B]`: its verdict adds one of its own. -1 where it has stopped."""
    left = jnp.where(state.alone, 0, state.budget - state.count - 1)
    return jnp.where(state.running, left, -1)


def _longest(wanted: jax.Array, drafted: jax.Array, settings: Settings) -> jax.Array:
    """How many draft tokens were made for the row that has most, int32 `[]`: what a cycle costs goes by that."""
    asked = jnp.max(wanted)
    if settings.fills_drafts:
        return asked
    # The token at which a model was too unsure to go on was computed too.
    return jnp.minimum(asked, jnp.max(drafted) + int(settings.drafter.draws))


def _last_token(sequence: jax.Array, at: jax.Array) -> jax.Array:
    return jnp.take_along_axis(sequence, at[:, None], axis=1)[:, 0]


def commit(
    state: LoopState,
    caches: Caches,
    wanted: jax.Array,
    outcome: Outcome,
    eos: jax.Array,
    settings: Settings,
    costs: Costs | None = None,
) -> LoopState:
    """The last part of a cycle: the state with what the verdicts keep. `caches` hold all that the cycle consumed."""
    consumed = state.length - 1
    accepted = jnp.where(state.running, outcome.accepted, 0)
    at = jnp.arange(settings.draft_length + 1)[None]
    emitted_eos = _is_any(outcome.emitted, eos)
    ended = jnp.any(emitted_eos & (at < accepted[:, None]), axis=1)
    failed = state.running & ~ended & (~outcome.fit | outcome.starved)
    committed = jnp.where(state.running, accepted + (outcome.fit & ~ended).astype(jnp.int32), 0)
    relaxed = jnp.pad(outcome.relaxed, ((0, 0), (0, 1)))
    origin = jnp.where(at < accepted[:, None], jnp.where(relaxed, RELAXED, DRAFT), TARGET)
    new_count = state.count + committed
    stops = jnp.any(emitted_eos & (at < committed[:, None]), axis=1)
    running = state.running & ~stops & ~failed & (new_count < state.budget)

    drafted = jnp.where(state.running, outcome.drafted, 0)
    caches = _commit(caches, consumed, committed, outcome.branch, settings)
    pace = None
    if settings.adaptive is not None:
        longest = _longest(wanted, drafted, settings)
        assert state.pace is not None and costs is not None
        pace = settings.adaptive.update(state.pace, costs, longest, drafted, accepted, committed, state.running)

    def traced(buffer: jax.Array | None, values: jax.Array | None) -> jax.Array | None:
        return None if buffer is None or values is None else _write(buffer, values, state.count)

    return LoopState(
        sequence=_write(state.sequence, outcome.emitted, state.length),
        length=state.length + committed,
        origin=_write(state.origin, origin, state.count),
        count=new_count,
        caches=caches,
        running=running,
        failed=state.failed | failed,
        alone=state.alone | (state.running & ~ended & outcome.alone),
        keys=state.keys,
        budget=state.budget,
        pace=pace,
        cycles=state.cycles + state.running.astype(jnp.int32),
        cycle_drafted=_write(state.cycle_drafted, drafted[:, None], state.cycles),
        cycle_committed=_write(state.cycle_committed, committed[:, None], state.cycles),
        kl=traced(state.kl, outcome.kl),
        logprobs=traced(state.logprobs, outcome.logprobs),
    )


def _propose(models, verifier, sampling, caches, context, settings):
    """The drafts of a batch, `[B D]` for D drafts a row; the caches, and each draft's last committed token."""
    drafts, width = settings.scorer.drafts, settings.draft_length
    if drafts > 1:
        keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(drafts)))(context.keys)
        context = jax.tree.map(lambda x: per_draft(x, settings), dataclasses.replace(context, keys=None))
        context = dataclasses.replace(context, keys=keys.reshape(-1))
    last = _last_token(context.sequence, context.consumed)
    if settings.drafter is None:
        nothing = jnp.zeros((last.shape[0], width), jnp.int32)
        return Draft(nothing, jnp.zeros_like(last), None, None, None), caches, last
    needs = getattr(verifier, "needs", frozenset())
    request = Request(width, "draft_hidden" in needs, settings.adaptive)
    draft, caches = settings.drafter.propose(models, caches, context, sampling, request)
    return draft, caches, last


def _verify(target, cache, verifier, sampling, proposal, consumed, settings):
    """The outcome of a pass that is no wider than the longest draft asks for, and the target's cache."""
    draft, count, last, _, keys = proposal
    cache = cache.at_length(per_draft(consumed, settings))

    def verified(width, cache):
        return verify_drafts(
            target, cache, verifier, sampling, last, draft, count, keys, settings=settings, width=width
        )

    widths = settings.widths
    if len(widths) == 1:
        return verified(widths[0], cache)
    # No row's answer depends on the width: what it may use is `count`, and its draws are those of its own key.
    narrowest = jnp.sum(jnp.max(count) > jnp.asarray(widths))
    carry = Outcome.empty(consumed.shape[0], settings), cache
    for i, width in enumerate(widths):
        carry = run_if(narrowest == i, lambda carry, width=width: verified(width, carry[1]), carry)
    return carry


def _commit(caches: Caches, consumed, committed, branch, settings: Settings) -> Caches:
    """The caches rolled back to what was committed; where a row has several drafts, all go on from the one followed."""
    length = per_draft(consumed + committed, settings)
    target, draft = caches.target.at_length(length), caches.draft
    if draft is not None:
        # It may have consumed less, where no row wanted a draft.
        draft = draft.at_length(jnp.minimum(draft.length, length))
    if settings.scorer.drafts > 1:
        target = _follow(target, branch, consumed, settings)
        draft = None if draft is None else _follow(draft, branch, consumed, settings)
    return Caches(target, draft)


def _follow(cache: KVCache, branch: jax.Array, consumed: jax.Array, settings: Settings) -> KVCache:
    """Copies what this cycle wrote for draft `branch` `[B]` of each row to the row's other drafts."""
    drafts, slots = settings.scorer.drafts, settings.draft_length + 1
    start = per_draft(consumed, settings)

    def copied(stored):
        rows = stored.reshape(-1, drafts, *stored.shape[1:])
        heads, dim = stored.shape[1], stored.shape[3]
        written = jax.vmap(lambda row, i, at: jax.lax.dynamic_slice(row, (i, 0, at, 0), (1, heads, slots, dim))[0])(
            rows, branch, consumed
        )
        return write_rows(stored, per_draft(written, settings), start)

    return KVCache(tuple(map(copied, cache.keys)), tuple(map(copied, cache.values)), cache.length)


def per_draft(rows: jax.Array, settings: Settings) -> jax.Array:
    """`[B, ...]` to `[B D, ...]`, D drafts a row."""
    return rows if settings.scorer.drafts == 1 else jnp.repeat(rows, settings.scorer.drafts, axis=0)


def _is_any(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.any(tokens[..., None] == jnp.expand_dims(ids, range(tokens.ndim)), axis=-1)


def _through_first(flags: jax.Array) -> jax.Array:
    """How many places flags `[B, K]` have up to and including the first that holds, K if none does: int32 `[B]`."""
    before = jnp.sum(jnp.cumprod((~flags).astype(jnp.int32), axis=1), axis=1)
    return jnp.minimum(before + 1, flags.shape[1])


def _write(buffer: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
    """Writes values `[B, n]` into buffer `[B, N]` from place `at[b]` on."""
    return jax.vmap(lambda row, new, i: jax.lax.dynamic_update_slice(row, new, (i,)))(
        buffer, values.astype(buffer.dtype), at
    )

"""One cycle: draft, score, verify, commit."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.core import drafting
from kljudge_jax.core.protocols import Context, Draft, Drafter, Models, Request, Window, layers_of
from kljudge_jax.core.rows import follow, repeated
from kljudge_jax.core.run_if import run_if
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.scorers import Scores
from kljudge_jax.core.state import DRAFT, RELAXED, TARGET, LoopState, Numbers, Shape
from kljudge_jax.core.target import until
from kljudge_jax.core.verify import Outcome, Progress, judge_drafts
from kljudge_jax.verification.base import Verifier


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
    models: Models, drafter: Drafter | None, rule: Verifier, state: LoopState, numbers: Numbers, *, shape: Shape
) -> LoopState:
    """One draft, one target pass, one verdict a row, and the commit."""
    if shape.controller is None:
        return _drafted(models, drafter, rule, state, numbers, shape, None)
    assert state.pace is not None
    bound = shape.controller.bound(state.pace, numbers.costs, state.left)
    # Apart: a cycle without a draft is one of plain decoding, and pays for no buffer that a draft passes through.
    plain = functools.partial(_plain, models, drafter, rule, numbers=numbers, shape=shape)
    state = run_if(bound == 0, plain, state)
    return run_if(bound > 0, lambda state: _drafted(models, drafter, rule, state, numbers, shape, bound), state)


def _drafted(models, drafter, rule, state: LoopState, numbers: Numbers, shape: Shape, bound) -> LoopState:
    proposal, cache, remembered = propose(models, drafter, rule, state, numbers, shape=shape, bound=bound)
    state = dataclasses.replace(state, cache=cache, drafter=remembered)

    def judged(state, width):
        return judge(models, drafter, rule, state, proposal, numbers, shape=shape, width=width)

    widths = shape.widths(drafter)
    if getattr(rule, "reads_length", False):  # a shorter draft would be judged as one of another length
        widths = tuple(width for width in widths if width in (0, shape.draft_length))
    if len(widths) == 1:
        return judged(state, widths[0])
    # No row's answer depends on the width: what it may use is `counts`, and its draws are those of its own key.
    narrowest = jnp.sum(jnp.max(proposal.counts) > jnp.asarray(widths))
    for i, width in enumerate(widths):
        state = run_if(narrowest == i, functools.partial(judged, width=width), state)
    return state


def _plain(models, drafter, rule, state: LoopState, numbers: Numbers, shape: Shape) -> LoopState:
    """A cycle that drafts nothing: the rule draws one token a row."""
    # A rule may read a draft of no tokens: one of the right kind, of which no more than the shapes is computed.
    kind = jax.eval_shape(lambda state: propose(models, drafter, rule, state, numbers, shape=shape)[0], state)
    per_token = dataclasses.replace(kind.draft, count=None)
    empty = jax.tree.map(lambda x: jnp.zeros((x.shape[0], 0, *x.shape[2:]), x.dtype), per_token)
    _, keys = _keys(state)
    last = repeated(_last_token(state), shape.scorer.drafts)
    proposal = Proposal(dataclasses.replace(empty, count=0 * last), 0 * last, last, 0 * state.count, keys)
    return judge(models, drafter, rule, state, proposal, numbers, shape=shape, width=0)


def propose(
    models: Models,
    drafter: Drafter | None,
    rule: Verifier,
    state: LoopState,
    numbers: Numbers,
    *,
    shape: Shape,
    bound: jax.Array | None = None,
) -> tuple[Proposal, Any, Any]:
    """The first part of a cycle.

    Args:
      models, drafter, rule, state, numbers, shape: as in `decode`.
      bound: int32 `[]`, the most draft tokens of a row in this cycle; None is K.

    Returns:
      a draft a row, or several; the target's cache and the drafter's state with what was consumed for it.
    """
    with jax.named_scope("draft"):
        drafts, length = shape.scorer.drafts, shape.draft_length
        draft_keys, verify_keys = _keys(state)
        wanted = jnp.clip(state.left, 0, length if bound is None else bound)
        last = repeated(_last_token(state), drafts)
        if drafter is None:
            nothing = Draft(jnp.broadcast_to(0 * last[:, None], (last.shape[0], length)), 0 * last)
            return Proposal(nothing, 0 * last, last, wanted, verify_keys), state.cache, state.drafter
        if drafts > 1:
            several = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(drafts)))
            draft_keys = several(draft_keys).reshape(-1)
        sequence, consumed, each = repeated((state.sequence, state.length - 1, wanted), drafts)
        controller = shape.controller
        request = Request(
            length,
            with_hidden="draft_hidden" in getattr(rule, "needs", frozenset()),
            shortens=controller is not None,
            confidence=0.0 if controller is None else controller.confidence,
            skips=controller is not None and not controller.minimum,
        )
        context = Context(sequence, consumed, each, draft_keys, numbers.sampling)
        draft, cache, remembered = drafting.propose(drafter, models, state.cache, state.drafter, context, request)
        count = jnp.minimum(jnp.minimum(draft.count, _through_first(_is_any(draft.tokens, numbers.end_ids))), each)
        # What comes after is scored too, and may be no token.
        tokens = jnp.where(jnp.arange(length)[None] < draft.count[:, None], draft.tokens, last[:, None])
        return Proposal(dataclasses.replace(draft, tokens=tokens), count, last, wanted, verify_keys), cache, remembered


def judge(
    models: Models,
    drafter: Drafter | None,
    rule: Verifier,
    state: LoopState,
    proposal: Proposal,
    numbers: Numbers,
    *,
    shape: Shape,
    width: int,
) -> LoopState:
    """The rest of a cycle, over drafts cut to `width` tokens: what is scored costs as much."""
    scores = score(models, drafter, state, proposal, shape=shape, width=width)
    outcome = verify(rule, numbers.sampling, state, proposal, scores, numbers, shape=shape)
    return commit(models, drafter, state, proposal, scores, outcome, numbers, shape=shape)


def score(
    models: Models, drafter: Drafter | None, state: LoopState, proposal: Proposal, *, shape: Shape, width: int
) -> Scores:
    """One target pass over each row's last token and the first `width` of its draft."""
    with jax.named_scope("score"):
        cache = state.cache.at_length(repeated(state.length - 1, shape.scorer.drafts))
        tokens, layers = proposal.draft.tokens[:, :width], layers_of(drafter)
        return shape.scorer.score(models.target, cache, proposal.last, tokens, proposal.counts, layers)


def verify(
    rule: Verifier,
    sampling: Sampling,
    state: LoopState,
    proposal: Proposal,
    scores: Scores,
    numbers: Numbers,
    *,
    shape: Shape,
) -> Outcome:
    """A verdict a row."""
    with jax.named_scope("verify"):
        section = None
        # Of several drafts of one row each would have its own: rules that choose among drafts read none.
        if state.section is not None and numbers.section_ids is not None and shape.scorer.drafts == 1:
            section = sections(state.section, proposal.draft.tokens, numbers.section_ids)
        progress = Progress(state.count, state.budget - state.count, section, state.carry)
        return judge_drafts(
            rule, sampling, proposal.draft, proposal.counts, proposal.keys, scores, progress, shape=shape
        )


def commit(
    models: Models,
    drafter: Drafter | None,
    state: LoopState,
    proposal: Proposal,
    scores: Scores,
    outcome: Outcome,
    numbers: Numbers,
    *,
    shape: Shape,
) -> LoopState:
    """The last part of a cycle: the state with what the verdicts keep, and the drafter told of it."""
    with jax.named_scope("commit"):
        accepted = jnp.where(state.running, outcome.accepted, 0)
        at = jnp.arange(shape.draft_length + 1)[None]
        emitted_end = _is_any(outcome.emitted, numbers.end_ids)
        ended = jnp.any(emitted_end & (at < accepted[:, None]), axis=1)
        failed = state.running & ~ended & (~outcome.fit | outcome.starved)
        committed = jnp.where(state.running, accepted + (outcome.fit & ~ended).astype(jnp.int32), 0)
        relaxed = jnp.pad(outcome.relaxed, ((0, 0), (0, 1)))
        origin = jnp.where(at < accepted[:, None], jnp.where(relaxed, RELAXED, DRAFT), TARGET)
        new_count = state.count + committed
        stops = jnp.any(emitted_end & (at < committed[:, None]), axis=1)
        drafted = jnp.where(state.running, outcome.drafted, 0)
        cache, remembered = told(models, drafter, state, proposal, scores, outcome, committed, shape)

        pace = state.pace
        if shape.controller is not None and pace is not None:
            pace = shape.controller.update(pace, proposal.wanted, drafted, accepted)
        section = state.section
        if section is not None and numbers.section_ids is not None:
            after = sections(section, outcome.emitted, numbers.section_ids)
            section = jnp.take_along_axis(after, committed[:, None], axis=1)[:, 0]

        def kept(old, new):
            return jnp.where(state.running.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        def traced(buffer: jax.Array | None, values: jax.Array | None) -> jax.Array | None:
            return None if buffer is None or values is None else _write(buffer, values, state.count)

        return dataclasses.replace(
            state,
            sequence=_write(state.sequence, outcome.emitted, state.length),
            length=state.length + committed,
            origin=_write(state.origin, origin, state.count),
            count=new_count,
            cache=cache,
            drafter=remembered,
            carry=None if state.carry is None else jax.tree.map(kept, state.carry, outcome.carry),
            section=section,
            running=state.running & ~stops & ~failed & (new_count < state.budget),
            failed=state.failed | failed,
            alone=state.alone | (state.running & ~ended & outcome.alone),
            pace=pace,
            cycles=state.cycles + state.running.astype(jnp.int32),
            cycle_drafted=_write(state.cycle_drafted, drafted[:, None], state.cycles),
            cycle_committed=_write(state.cycle_committed, committed[:, None], state.cycles),
            kl=traced(state.kl, outcome.kl),
            logprobs=traced(state.logprobs, outcome.logprobs),
            sampled_logprobs=traced(state.sampled_logprobs, outcome.sampled_logprobs),
        )


def told(models, drafter, state, proposal, scores, outcome, committed, shape):
    """The target's cache rolled back to what was committed, and what the drafter remembers once it is told.

    Where a row has several drafts, all go on from the one followed. `committed` is int32 `[B]`.
    """
    drafts, width = shape.scorer.drafts, scores.logits.shape[1] - 1
    start = repeated(state.length - 1, drafts)
    kept = repeated(committed, drafts)
    cache, remembered, features = scores.cache, state.drafter, scores.features
    tokens = jnp.concatenate([proposal.last[:, None], proposal.draft.tokens[:, :width]], axis=1)
    if drafts > 1:
        source = repeated(jnp.arange(committed.shape[0]) * drafts + outcome.branch, drafts)
        cache = cache.follow(source, start, shape.draft_length + 1)
        remembered = follow(remembered, source, start, shape.draft_length + 1)
        features, tokens = jax.tree.map(lambda x: jnp.take(x, source, axis=0), (features, tokens))
    if drafter is not None:
        next_tokens = repeated(outcome.emitted[:, : width + 1], drafts)
        window = Window(start, tokens, next_tokens, until(features, width + 1), kept)
        remembered = drafting.observe(drafter, models, remembered, window)
    return cache.at_length(start + kept), remembered


def sections(before: jax.Array, tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether each token stands in a thinking block.

    Args:
      before: int32 `[B]`, 1 where the first one does.
      tokens: int32 `[B, n]`.
      ids: int32 `[2]`, what opens a block and what closes it; the first stands outside, the second inside.

    Returns:
      int32 `[B, n + 1]`; the last is of a token after these.
    """
    change = jnp.where(tokens == ids[0], 1, jnp.where(tokens == ids[1], 0, -1))
    state = jnp.concatenate([before[:, None], change], axis=1)
    # The last change up to each place decides.
    place = jnp.where(state >= 0, jnp.arange(state.shape[1])[None], 0)
    return jnp.take_along_axis(state, jax.lax.cummax(place, axis=1), axis=1)


def _keys(state: LoopState):
    """What each row's draft and its verdict draw with, keys `[B]` both."""
    # A row's draws depend on its own key and on how far it has come, never on its neighbours.
    cycle_keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(cycle_keys)


def _last_token(state: LoopState) -> jax.Array:
    return jnp.take_along_axis(state.sequence, state.length[:, None] - 1, axis=1)[:, 0]


def _is_any(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.any(tokens[..., None] == jnp.expand_dims(ids, range(tokens.ndim)), axis=-1)


def _through_first(flags: jax.Array) -> jax.Array:
    """How many places flags `[B, K]` have up to and including the first that holds, K if none does: int32 `[B]`."""
    before = jnp.sum(jnp.cumprod((~flags).astype(jnp.int32), axis=1), axis=1)
    return jnp.minimum(before + 1, flags.shape[1])


def _write(buffer: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
    """Writes values `[B, n]` into buffer `[B, N]` from place `at[b]` on, or from N - n where that is less."""

    def scattered(buffer, values, at):
        return jax.vmap(lambda row, new, i: jax.lax.dynamic_update_slice(row, new, (i,)))(buffer, values, at)

    def selected(buffer, values, at):
        # A TPU runs a scatter as a loop over rows. These buffers are small: to pass over all of one costs less.
        offset = jnp.arange(buffer.shape[1])[None] - jnp.clip(at, 0, buffer.shape[1] - values.shape[1])[:, None]
        for i in range(values.shape[1]):
            buffer = jnp.where(offset == i, values[:, i : i + 1], buffer)
        return buffer

    return jax.lax.platform_dependent(buffer, values.astype(buffer.dtype), at, tpu=selected, default=scattered)

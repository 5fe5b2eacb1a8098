"""The decoding loop: draft, score, verify, commit, cycle after cycle on the device."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.decoding.draft import Draft
from kljudge_jax.decoding.sampling import Sampling, process_logits
from kljudge_jax.decoding.score import prefill, score_draft
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.verification.base import Verdict, Verifier, VerifyInputs
from kljudge_jax.verification.distributions import kl_divergence

# Where a committed token came from: the codes that `LoopState.origin` holds.
ORIGINS = ("draft", "relaxed", "target")
_DRAFT, _RELAXED, _TARGET = range(3)


def from_draft(origin):
    """Whether tokens of these origin codes were drafted."""
    return origin != _TARGET


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static half of a run. Hashable: a new value compiles anew.

    Attributes:
      drafter: what proposes tokens; None for plain decoding, which is K = 0.
      draft_length: K.
      capacity: slots of each cache, S.
      room: tokens that the buffers of new tokens hold, N.
      trace: record the divergence and the log-probability of every token.
    """

    drafter: Any
    draft_length: int
    capacity: int
    room: int
    trace: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """Everything a run carries from cycle to cycle; B rows, N = `Settings.room`, K draft length.

    Buffers of new tokens have K + 1 spare places, since a cycle writes K + 1 and counts what it keeps.

    Attributes:
      tokens: int32 `[B, N + K + 1]`, new tokens; stale from `count` on.
      origin: int8, same shape, index into `ORIGINS`.
      count: int32 `[B]`, tokens committed.
      recent: int32 `[B, 2]`, the last two tokens, prompt included.
      target_cache, draft_cache: what each model consumed: all tokens of a row but its last one, at the least.
      running: bool `[B]`.
      failed: bool `[B]`, stopped because a model returned NaN or +inf.
      keys: `[B]`, one key a row.
      budget: int32 `[B]`, tokens a row may commit.
      cycles: int32 `[B]`.
      cycle_drafted, cycle_committed: int32 `[B, N + 1]`, per cycle.
      kl: f32 `[B, N + K + 1]` or None, KL(target || draft) where a token was drafted, nats at T = 1; else NaN.
      logprobs: f32, same shape or None, log-probability under the target at T = 1.
    """

    tokens: jax.Array
    origin: jax.Array
    count: jax.Array
    recent: jax.Array
    target_cache: KVCache
    draft_cache: KVCache | None
    running: jax.Array
    failed: jax.Array
    keys: jax.Array
    budget: jax.Array
    cycles: jax.Array
    cycle_drafted: jax.Array
    cycle_committed: jax.Array
    kl: jax.Array | None
    logprobs: jax.Array | None


@functools.partial(jax.jit, static_argnames="settings")
def start(
    target: Transformer,
    draft: Transformer | None,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    budget: jax.Array,
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
      settings: the static half.
    """
    batch = prompts.shape[0]

    def consumed(model):
        cache = KVCache.create(model.config, batch, settings.capacity, model.dtype)
        return prefill(model, cache, prompts, lengths)

    ends = jnp.stack([jnp.maximum(lengths - 2, 0), lengths - 1], axis=1)
    places = settings.room + settings.draft_length + 1

    def buffer(dtype, size=places):
        return jnp.zeros((batch, size), dtype)

    return LoopState(
        tokens=buffer(jnp.int32),
        origin=buffer(jnp.int8),
        count=jnp.zeros((batch,), jnp.int32),
        recent=jnp.take_along_axis(prompts, ends, axis=1),
        target_cache=consumed(target),
        draft_cache=None if draft is None else consumed(draft),
        running=budget > 0,
        failed=jnp.zeros((batch,), bool),
        keys=keys,
        budget=budget,
        cycles=jnp.zeros((batch,), jnp.int32),
        cycle_drafted=buffer(jnp.int32, settings.room + 1),
        cycle_committed=buffer(jnp.int32, settings.room + 1),
        kl=buffer(jnp.float32) if settings.trace else None,
        logprobs=buffer(jnp.float32) if settings.trace else None,
    )


@functools.partial(jax.jit, static_argnames=("settings", "rule"), donate_argnames="state")
def run_cycles(
    target: Transformer,
    draft: Transformer | None,
    verifier: Verifier,
    sampling: Sampling,
    eos: jax.Array,
    state: LoopState,
    halted: jax.Array,
    max_cycles: jax.Array,
    *,
    settings: Settings,
    rule: type,
) -> LoopState:
    """Runs cycles until every row has stopped, `max_cycles` int32 `[]` at the most. `state` is donated.

    `eos` int32 `[E]` holds every id that ends an answer, and `halted` bool `[B]` the rows that the host stopped; the
    other arguments are those of `cycle`. `rule` is the verifier's class: jit keys a program by the structure of its
    arguments, and jaxlib 0.10.2 takes the structures of two registered dataclasses with as many fields for equal.
    """
    del rule
    state = dataclasses.replace(state, running=state.running & ~halted)

    def unfinished(carry):
        i, state = carry
        return (i < max_cycles) & jnp.any(state.running)

    def body(carry):
        i, state = carry
        return i + 1, cycle(target, draft, verifier, sampling, eos, state, settings)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


def cycle(
    target: Transformer,
    draft: Transformer | None,
    verifier: Verifier,
    sampling: Sampling,
    eos: jax.Array,
    state: LoopState,
    settings: Settings,
) -> LoopState:
    """One draft, one target pass, one verdict a row, and the commit."""
    consumed = state.target_cache.length
    # A row's draws depend on its own key and on how far it has come, never on its neighbours.
    cycle_keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
    draft_keys, verify_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(cycle_keys)

    needs = getattr(verifier, "needs", frozenset())
    if settings.drafter is None:
        nothing = jnp.zeros((state.recent.shape[0], 0, target.config.vocab_size), jnp.float32)
        proposal, draft_cache = Draft(nothing[..., 0].astype(jnp.int32), nothing, nothing, None), state.draft_cache
    else:
        proposal, draft_cache = settings.drafter.propose(
            draft,
            state.draft_cache,
            state.recent,
            consumed,
            draft_keys,
            sampling,
            settings.draft_length,
            "draft_hidden" in needs,
        )
    raw_logits, hidden, target_cache = score_draft(target, state.target_cache, state.recent[:, 1], proposal.tokens)

    is_eos = _is_any(proposal.tokens, eos)
    wanted = jnp.minimum(_through_first(is_eos), state.budget - state.count - 1)
    draft_fit, target_fit = _fit(proposal.raw_logits), _fit(raw_logits)
    # Logits that are no numbers end the draft before them: nothing is ever accepted or drawn from such a row.
    draft_count = jnp.minimum(wanted, jnp.minimum(_leading(draft_fit), _leading(target_fit)))
    draft_count = jnp.maximum(draft_count, 0)

    inputs = VerifyInputs(
        draft_tokens=proposal.tokens,
        draft_count=draft_count,
        draft_logits=proposal.logits,
        target_logits=process_logits(raw_logits, sampling),
        raw_draft_logits=proposal.raw_logits,
        raw_target_logits=raw_logits,
        draft_hidden=proposal.hidden,
        target_hidden=hidden[:, 1:] if "target_hidden" in needs else None,
        greedy=jnp.asarray(sampling.greedy),
    )
    verdict = verify(verifier, verify_keys, inputs)

    accepted = jnp.where(state.running, jnp.clip(verdict.num_accepted, 0, draft_count), 0)
    at = jnp.arange(settings.draft_length + 1)
    ended = jnp.any(is_eos & (at[:-1] < accepted[:, None]), axis=1)
    unfit = ~jnp.take_along_axis(target_fit, accepted[:, None], axis=1)[:, 0]
    unfit |= (verdict.next_token < 0) | (verdict.next_token >= target.config.vocab_size)
    # The draft failed only where it stopped a row from using a token that it still had room for.
    starved = (accepted == draft_count) & (draft_count < wanted)
    failed = state.running & ~ended & (unfit | starved)
    committed = jnp.where(state.running, accepted + ~(ended | unfit), 0)

    padded = jnp.pad(proposal.tokens, ((0, 0), (0, 1)))
    emitted = jnp.where(at < accepted[:, None], padded, verdict.next_token[:, None])
    relaxed = jnp.pad(verdict.relaxed, ((0, 0), (0, 1)))
    origin = jnp.where(at < accepted[:, None], jnp.where(relaxed, _RELAXED, _DRAFT), _TARGET).astype(jnp.int8)
    count = state.count + committed
    stops = _is_any(emitted, eos) & (at < committed[:, None])
    running = state.running & ~jnp.any(stops, axis=1) & ~failed & (count < state.budget)

    kl, logprobs = state.kl, state.logprobs
    if settings.trace:
        divergences = kl_divergence(raw_logits[:, : settings.draft_length], proposal.raw_logits)
        divergences = jnp.where(at[:-1] < draft_count[:, None], divergences, jnp.nan)
        kl = _write(kl, jnp.pad(divergences, ((0, 0), (0, 1)), constant_values=jnp.nan), state.count)
        logs = jax.nn.log_softmax(raw_logits, axis=-1)
        logprobs = _write(logprobs, jnp.take_along_axis(logs, emitted[..., None], axis=-1)[..., 0], state.count)

    drafted = jnp.where(state.running, draft_count, 0)
    return LoopState(
        tokens=_write(state.tokens, emitted, state.count),
        origin=_write(state.origin, origin, state.count),
        count=count,
        recent=_last_two(state.recent, emitted, committed),
        target_cache=target_cache.at_length(consumed + committed),
        draft_cache=draft_cache,
        running=running,
        failed=state.failed | failed,
        keys=state.keys,
        budget=state.budget,
        cycles=state.cycles + state.running,
        cycle_drafted=_write(state.cycle_drafted, drafted[:, None], state.cycles),
        cycle_committed=_write(state.cycle_committed, committed[:, None], state.cycles),
        kl=kl,
        logprobs=logprobs,
    )


def verify(verifier: Verifier, keys: jax.Array, inputs: VerifyInputs) -> Verdict:
    """The rule over a batch: every field of `inputs` has a leading axis B, but `greedy`, which is one for all."""
    axes = VerifyInputs(0, 0, 0, 0, 0, 0, 0, 0, None)
    axes = dataclasses.replace(
        axes,
        draft_hidden=None if inputs.draft_hidden is None else 0,
        target_hidden=None if inputs.target_hidden is None else 0,
    )
    return jax.vmap(lambda key, row: verifier(key, row), in_axes=(0, axes))(keys, inputs)


def _is_any(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.any(tokens[..., None] == ids, axis=-1)


def _leading(flags: jax.Array) -> jax.Array:
    """How many of flags `[B, K]` hold before the first that does not: int32 `[B]`."""
    return jnp.sum(jnp.cumprod(flags.astype(jnp.int32), axis=1), axis=1)


def _through_first(flags: jax.Array) -> jax.Array:
    """How many places flags `[B, K]` have up to and including the first that holds, K if none does: int32 `[B]`."""
    return jnp.minimum(_leading(~flags) + 1, flags.shape[1])


def _fit(logits: jax.Array) -> jax.Array:
    """Whether logits `[..., V]` define a distribution: no NaN, no +inf, not all -inf. The maximum shows all three."""
    return jnp.isfinite(jnp.max(logits, axis=-1))


def _write(buffer: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
    """Writes values `[B, n]` into buffer `[B, N]` from place `at[b]` on."""
    return jax.vmap(lambda row, new, i: jax.lax.dynamic_update_slice(row, new, (i,)))(
        buffer, values.astype(buffer.dtype), at
    )


def _last_two(recent: jax.Array, emitted: jax.Array, committed: jax.Array) -> jax.Array:
    """The last two of `recent` `[B, 2]` followed by the first `committed` of `emitted`."""
    both = jnp.concatenate([recent, emitted], axis=1)
    return jnp.take_along_axis(both, committed[:, None] + jnp.arange(2), axis=1)

"""The second half of a cycle: the target scores the drafts of a batch, and the rule decides."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.decoding.drafter import Draft
from kljudge_jax.decoding.sampling import Sampling, process_logits
from kljudge_jax.decoding.scorers import Scores
from kljudge_jax.decoding.state import Settings
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.verification.base import DraftsVerifier, ReflectionVerifier, Verdict, Verifier, VerifyInputs
from kljudge_jax.verification.distributions import is_distribution, kl_divergence
from kljudge_jax.verification.reflective import ReflectedInputs


class Outcome(NamedTuple):
    """What became of the drafts of a batch; B rows, K draft length, D drafts a row.

    Attributes:
      accepted: int32 `[B]`, leading draft tokens that are kept.
      next_token: int32 `[B]`, the correction or bonus token.
      relaxed: bool `[B, K]`, as in a verdict.
      drafted: int32 `[B]`, draft tokens that the rule could keep.
      starved: bool `[B]`, the draft returned NaN or +inf where one of its tokens was wanted, and nothing before it was
        rejected. The rule is no lossless one: it fails the row.
      alone: bool `[B]`, the same under a lossless rule, whose tokens need no draft: the target goes on alone.
      fit: bool `[B]`, whether `next_token` is one of the vocabulary, from logits that are numbers.
      emitted: int32 `[B, K + 1]`, the accepted tokens, then `next_token`.
      branch: int32 `[B]`, which of the D drafts was followed.
      kl, logprobs: f32 `[B, K + 1]`, or None without `Settings.trace`.
    """

    accepted: jax.Array
    next_token: jax.Array
    relaxed: jax.Array
    drafted: jax.Array
    starved: jax.Array
    alone: jax.Array
    fit: jax.Array
    emitted: jax.Array
    branch: jax.Array
    kl: jax.Array | None
    logprobs: jax.Array | None

    @classmethod
    def empty(cls, batch: int, settings: Settings) -> Outcome:
        """One of the right shapes and dtypes, before there is any."""
        number, flag = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)
        flags = jnp.zeros((batch, settings.draft_length), bool)
        numbers = jnp.zeros((batch, settings.draft_length + 1), jnp.int32)
        trace = numbers.astype(jnp.float32) if settings.trace else None
        return cls(number, number, flags, number, flag, flag, flag, numbers, number, trace, trace)


def verify_drafts(
    target: Transformer,
    cache: KVCache,
    verifier: Verifier,
    sampling: Sampling,
    last: jax.Array,
    draft: Draft,
    count: jax.Array,
    keys: jax.Array,
    *,
    settings: Settings,
    width: int,
) -> tuple[Outcome, KVCache]:
    """One target pass over drafts cut to `width` tokens, and a verdict a row.

    Args:
      target: the model that judges.
      cache: its cache, `[B D]` rows without their last token.
      verifier: the rule.
      sampling: how tokens are drawn.
      last: int32 `[B D]`, each row's last token.
      draft: `[B D]` drafts.
      count: int32 `[B D]`, how many tokens of each are real; at most `width`.
      keys: `[B]`.
      settings: the static half of the run.
      width: w, up to K; what is scored costs as much.

    Returns:
      the outcome, and the cache, whose length is of no use.
    """
    scores = settings.scorer.score(target, cache, last, draft.tokens[:, :width], count)
    outcome = judge_drafts(verifier, sampling, draft, count, keys, scores, settings=settings)
    return outcome, scores.cache


def judge_drafts(
    verifier: Verifier,
    sampling: Sampling,
    draft: Draft,
    count: jax.Array,
    keys: jax.Array,
    scores: Scores,
    *,
    settings: Settings,
) -> Outcome:
    """The verdicts on drafts that the target has scored; arguments as in `verify_drafts`, `scores` of w tokens."""
    width, vocab = scores.logits.shape[1] - 1, scores.logits.shape[2]
    drafts = settings.scorer.drafts
    needs: frozenset[str] = getattr(verifier, "needs", frozenset())
    tokens = draft.tokens[:, :width]
    draft_logits, raw_draft_logits = draft.distributions(width, vocab)

    # Logits that are no numbers end the draft before them: nothing is ever accepted or drawn from such a row.
    target_fit = is_distribution(scores.logits)
    judged = None
    if scores.reflected is not None:
        assert isinstance(verifier, ReflectionVerifier)
        judged = verifier.fuse(scores.logits, scores.reflected)
        target_fit &= is_distribution(judged)
    usable = jnp.minimum(count, jnp.minimum(_leading(is_distribution(raw_draft_logits)), _leading(target_fit)))

    inputs = VerifyInputs(
        draft_tokens=tokens,
        draft_count=usable,
        draft_logits=draft_logits,
        target_logits=process_logits(scores.logits, sampling),
        raw_draft_logits=raw_draft_logits,
        raw_target_logits=scores.logits,
        draft_hidden=None if draft.hidden is None or "draft_hidden" not in needs else draft.hidden[:, :width],
        target_hidden=scores.hidden[:, 1:] if "target_hidden" in needs else None,
        greedy=jnp.asarray(sampling.greedy),
    )
    if judged is not None:
        inputs = ReflectedInputs.of(inputs, process_logits(judged, sampling))
    if drafts == 1:
        verdict, branch = verdicts(verifier, keys, inputs), jnp.zeros(keys.shape, jnp.int32)
    else:
        assert isinstance(verifier, DraftsVerifier)
        inputs = jax.tree.map(lambda x: _by_row(x, drafts) if x.ndim else x, inputs)
        verdict, branch = jax.vmap(verifier.choose, in_axes=(0, _batch_axes(inputs)))(keys, inputs)

    def followed(x):  # [B D, ...] to [B, ...]
        if drafts == 1:
            return x
        return jax.vmap(lambda row, i: row[i])(_by_row(x, drafts), branch)

    usable, count, tokens, target_fit = map(followed, (usable, count, tokens, target_fit))
    accepted = jnp.clip(verdict.num_accepted, 0, usable).astype(jnp.int32)
    fit = jnp.take_along_axis(target_fit, accepted[:, None], axis=1)[:, 0]
    fit &= (verdict.next_token >= 0) & (verdict.next_token < vocab)
    # A draft failed only where it stopped a row from using a token that it still had room for.
    starved = (accepted == usable) & (usable < count)
    # Whether it did is known from what precedes the token alone, so that going on without it changes no distribution.
    lossless = getattr(verifier, "lossless", False)
    spare = settings.draft_length - width
    at = jnp.arange(settings.draft_length + 1)[None]
    padded = jnp.pad(tokens, ((0, 0), (0, spare + 1)))
    emitted = jnp.where(at < accepted[:, None], padded, verdict.next_token[:, None])

    kl = logprobs = None
    if settings.trace:
        raw, raw_draft = followed(scores.logits), followed(raw_draft_logits)
        kl = jnp.where(at[:, :width] < usable[:, None], kl_divergence(raw[:, :width], raw_draft), jnp.nan)
        kl = jnp.pad(kl, ((0, 0), (0, spare + 1)), constant_values=jnp.nan)
        logs = jax.nn.log_softmax(raw, axis=-1)
        logprobs = jnp.take_along_axis(logs, emitted[:, : width + 1, None], axis=-1)[..., 0]
        logprobs = jnp.pad(logprobs, ((0, 0), (0, spare)))
    return Outcome(
        accepted=accepted,
        next_token=verdict.next_token.astype(jnp.int32),
        relaxed=jnp.pad(verdict.relaxed, ((0, 0), (0, spare))),
        drafted=usable,
        starved=starved & (not lossless),
        alone=starved & fit & lossless,
        fit=fit,
        emitted=emitted,
        branch=branch,
        kl=kl,
        logprobs=logprobs,
    )


def verdicts(verifier: Verifier, keys: jax.Array, inputs: VerifyInputs) -> Verdict:
    """The rule over a batch: every field of `inputs` has a leading axis B, but `greedy`, which is one for all."""
    return jax.vmap(lambda key, row: verifier(key, row), in_axes=(0, _batch_axes(inputs)))(keys, inputs)


def _by_row(x: jax.Array, drafts: int) -> jax.Array:
    """`[B D, ...]` to `[B, D, ...]`."""
    return x.reshape(x.shape[0] // drafts, drafts, *x.shape[1:])


def _batch_axes(inputs: VerifyInputs) -> VerifyInputs:
    return dataclasses.replace(jax.tree.map(lambda _: 0, inputs), greedy=None)


def _leading(flags: jax.Array) -> jax.Array:
    """How many of flags `[B, K]` hold before the first that does not: int32 `[B]`."""
    return jnp.sum(jnp.cumprod(flags.astype(jnp.int32), axis=1), axis=1)

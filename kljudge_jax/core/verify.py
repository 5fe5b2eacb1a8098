"""The second half of a cycle: the target scores the drafts of a batch, and the rule decides."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Draft
from kljudge_jax.core.sampling import Sampling, process_logits
from kljudge_jax.core.scorers import Scores
from kljudge_jax.core.state import Shape
from kljudge_jax.core.target import alike
from kljudge_jax.errors import InputError
from kljudge_jax.verification.base import Verdict, Verifier, VerifyInputs
from kljudge_jax.verification.distributions import is_distribution, kl_on_support
from kljudge_jax.verification.specs import called


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
      carry: what the rule remembers, or None.
      kl, logprobs, sampled_logprobs: f32 `[B, K + 1]`, or None without `Shape.trace`; the last when greedy too.
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
    carry: Any
    kl: jax.Array | None
    logprobs: jax.Array | None
    sampled_logprobs: jax.Array | None


class Progress(NamedTuple):
    """How far each answer has come, for rules that ask; B rows.

    Attributes:
      position: int32 `[B]`, tokens committed.
      remaining: int32 `[B]`, tokens that may still be.
      section: int32 `[B, K + 1]`, see `VerifyInputs`; None without `Numbers.section_ids`.
      carry: what the rule remembers, `[B, ...]`, or None.
    """

    position: jax.Array
    remaining: jax.Array
    section: jax.Array | None
    carry: Any


def judge_drafts(
    verifier: Verifier,
    sampling: Sampling,
    draft: Draft,
    count: jax.Array,
    keys: jax.Array,
    scores: Scores,
    progress: Progress,
    *,
    shape: Shape,
) -> Outcome:
    """The verdicts on drafts that the target has scored.

    Args:
      verifier: the rule.
      sampling: how tokens are drawn.
      draft: `[B D]` drafts.
      count: int32 `[B D]`, how many tokens of each are real.
      keys: `[B]`.
      scores: of the first w tokens of the drafts; count is at most w.
      progress: how far the answers have come.
      shape: the static half of the run.
    """
    width, vocab = scores.logits.shape[1] - 1, scores.logits.shape[2]
    drafts = shape.scorer.drafts
    needs: frozenset[str] = getattr(verifier, "needs", frozenset())
    tokens = draft.tokens[:, :width]
    if draft.raw_logits is None and getattr(verifier, "compares_drafts", False):
        raise InputError(
            f"{called(verifier)} reads {compared_by(verifier)}, and the drafter gives no distributions "
            "(Draft.raw_logits is None): draft with a model, or use another rule"
        )
    draft_logits, raw_draft_logits = draft.distributions(width, vocab)
    if raw_draft_logits.shape != (tokens.shape[0], width, vocab):
        raise InputError(
            f"the draft's logits have {raw_draft_logits.shape[-1]} tokens, and the target's {vocab}: see Draft.logits"
        )

    # Logits that are no numbers end the draft before them: nothing is ever accepted or drawn from such a row.
    target_fit = is_distribution(scores.logits)
    judged = None
    if scores.reflected is not None:
        judged = verifier.fuse(scores.logits, scores.reflected)  # type: ignore[attr-defined]  # a ReflectionVerifier
        target_fit &= is_distribution(judged)
    usable = jnp.minimum(count, jnp.minimum(_leading(is_distribution(raw_draft_logits)), _leading(target_fit)))

    def seen(needed: str, hidden: jax.Array | None) -> jax.Array | None:
        if needed not in needs:
            return None
        if hidden is None:
            raise InputError(f"{called(verifier)} reads {needed}, and that model gives logits alone")
        return hidden

    target_hidden = scores.features.hidden
    inputs = VerifyInputs(
        draft_tokens=tokens,
        draft_count=usable,
        draft_logits=draft_logits,
        target_logits=process_logits(scores.logits, sampling),
        raw_draft_logits=raw_draft_logits,
        raw_target_logits=scores.logits,
        draft_hidden=seen("draft_hidden", None if draft.hidden is None else draft.hidden[:, :width]),
        target_hidden=seen("target_hidden", None if target_hidden is None else target_hidden[:, 1:]),
        greedy=jnp.asarray(sampling.greedy),
        judged_logits=None if judged is None else process_logits(judged, sampling),
    )
    section = None if progress.section is None else progress.section[:, : width + 1]
    ours = progress._replace(section=section)
    if drafts == 1:
        inputs = dataclasses.replace(inputs, **ours._asdict())
        verdict, branch = verdicts(verifier, keys, inputs), jnp.zeros(keys.shape, jnp.int32)
    else:
        rows = jax.tree.map(lambda x: _by_row(x, drafts) if x.ndim else x, inputs)
        one = dataclasses.replace(rows, **ours._asdict())
        verdict, branch = _over_rows(lambda rule, key, row: rule.choose(key, row), verifier, keys, one)

    if not isinstance(verdict, Verdict):
        raise InputError(f"{called(verifier)} returns a {type(verdict).__name__}: return a kljudge_jax.Verdict")
    if not alike(progress.carry, verdict.carry):
        raise InputError(
            f"{called(verifier)} returns a Verdict.carry of other shapes, dtypes or structure than its init_carry() has"
        )

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
    spare = shape.draft_length - width
    at = jnp.arange(shape.draft_length + 1)[None]
    padded = jnp.pad(tokens, ((0, 0), (0, spare + 1)))
    emitted = jnp.where(at < accepted[:, None], padded, verdict.next_token[:, None])

    kl = logprobs = sampled = None
    if shape.trace:
        raw, raw_draft = followed(scores.logits), followed(raw_draft_logits)
        kl = jnp.where(at[:, :width] < usable[:, None], kl_on_support(raw, raw_draft), jnp.nan)
        kl = jnp.pad(kl, ((0, 0), (0, spare + 1)), constant_values=jnp.nan)

        def log_probability(logits):
            logs = jax.nn.log_softmax(logits, axis=-1)
            found = jnp.take_along_axis(logs, emitted[:, : width + 1, None], axis=-1)[..., 0]
            return jnp.pad(found, ((0, 0), (0, spare)))

        logprobs = log_probability(raw)
        sampled = None if sampling.greedy else log_probability(process_logits(raw, sampling))
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
        carry=verdict.carry,
        kl=kl,
        logprobs=logprobs,
        sampled_logprobs=sampled,
    )


def compared_by(rule: Any) -> str:
    """What a rule with `compares_drafts` reads of a draft's distribution, for messages."""
    return getattr(rule, "compared", "KL(target || draft)")


def verdicts(verifier: Verifier, keys: jax.Array, inputs: VerifyInputs) -> Verdict:
    """The rule over a batch: every field of `inputs` has a leading axis B, but `greedy`, which is one for all; so have
    those numbers of the rule that are one a row."""
    return _over_rows(lambda rule, key, row: rule(key, row), verifier, keys, inputs)


def _over_rows(function, verifier, keys, inputs):
    """`function(rule, key, inputs)` of each row."""
    leaves, structure = jax.tree.flatten(verifier)
    axes = dataclasses.replace(jax.tree.map(lambda _: 0, inputs), greedy=None)

    def of_row(leaves, key, row):
        return function(jax.tree.unflatten(structure, leaves), key, row)

    return jax.vmap(of_row, in_axes=(row_axes(verifier), 0, axes))(leaves, keys, inputs)


# How a field of a rule is annotated that is a number.
_NUMBERS: tuple[Any, ...] = ("float", "int", float, int)


def check_row_numbers(rule: Any, batch: int) -> None:
    """Refuses numbers of a rule that are one a row of another batch."""
    for axis, leaf in zip(row_axes(rule), jax.tree.leaves(rule), strict=True):
        if axis == 0 and jnp.shape(leaf) != (batch,):
            raise InputError(f"{called(rule)} has {jnp.size(leaf)} numbers for {batch} rows: give it one, or one a row")


def check_on_policy(rule: Any, off_policy: bool = False) -> None:
    """Refuses a rule whose answers are no samples of the target: its log-probabilities are then not the behaviour's.

    Args:
      rule: the verification rule of rollouts.
      off_policy: the learner knows that they are not the target's, and corrects for it or need not.

    Raises:
      InputError: the rule is relaxed, and `off_policy` is False.
    """
    if not getattr(rule, "lossless", False) and not off_policy:
        raise InputError(
            f"{called(rule)} keeps tokens that the target would not have drawn, so that the target's "
            "log-probabilities are not those of the answers: use a lossless rule such as SpeculativeSampling(), or say "
            "off_policy=True"
        )


def row_axes(rule: Any) -> list[int | None]:
    """Of each leaf of a rule, 0 if it is a number, that is a field annotated as one, that is one a row: `[B]`."""
    axes: list[int | None] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(rule)[0]:
        owner, name = rule, None
        for step in path:
            owner = owner if name is None else getattr(owner, name, None)
            name = getattr(step, "name", None)
        fields = (
            {field.name: field.type for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
        )
        number = name is not None and fields.get(name) in _NUMBERS
        axes.append(0 if number and jnp.ndim(leaf) == 1 else None)
    return axes


def _by_row(x: jax.Array, drafts: int) -> jax.Array:
    """`[B D, ...]` to `[B, D, ...]`."""
    return x.reshape(x.shape[0] // drafts, drafts, *x.shape[1:])


def _leading(flags: jax.Array) -> jax.Array:
    """How many of flags `[B, K]` hold before the first that does not: int32 `[B]`."""
    return jnp.sum(jnp.cumprod(flags.astype(jnp.int32), axis=1), axis=1)

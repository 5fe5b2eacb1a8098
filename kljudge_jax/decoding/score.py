"""One pass of a model over given tokens: prefill, the target's pass over a draft, and teacher-forced scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.transformer import Transformer

# Longer prompts go in chunks, so that scores take [B, N, 128, S] and not [B, N, T, S].
PREFILL_CHUNK = 128

# On a CPU a prompt goes alone, in chunks of these many tokens, for padding costs as much as text does. Elsewhere a pass
# over few tokens costs what one over many does.
CPU_CHUNK = 32


def prefill(
    model: Transformer, cache: KVCache, prompts: jax.Array, lengths: jax.Array, shared_chunks: jax.Array | int = 0
) -> KVCache:
    """Consumes every prompt but its last token, which is the first one that a cycle consumes.

    Args:
      model: target or draft.
      cache: an empty cache of at least P slots.
      prompts: int32 `[B, P]`, padded on the right; P at most a chunk, or a multiple of one.
      lengths: int32 `[B]`, at least 1.
      shared_chunks: int32 `[]`, how many whole chunks all rows begin with alike, as `count_shared_chunks` says: those
        are computed once.
    """
    if model.layout is None and jax.default_backend() == "cpu":
        return _one_by_one(model, cache, prompts, jnp.asarray(lengths), shared_chunks)
    chunk = min(prompts.shape[1], PREFILL_CHUNK)
    first: jax.Array | int = 0
    if len(prompts) > 1 and prompts.shape[1] > chunk:  # else nothing is shared, and a loop more would be compiled
        first = shared_chunks * chunk
        one = _consume(model, jax.tree.map(lambda x: x[:1], cache), prompts[:1], 0, first, chunk)
        cache = jax.tree.map(lambda x, all_rows: jnp.broadcast_to(x, all_rows.shape), one, cache)
    return prefill_from(model, cache, prompts, lengths, first, chunk)


def prefill_from(
    model: Transformer, cache: KVCache, prompts: jax.Array, lengths: jax.Array, first: jax.Array | int, chunk: int
) -> KVCache:
    """`prefill`, where the cache holds the first `first` tokens of every row already, int32 `[]`, whole chunks of them.

    `chunk` tokens a row are consumed in one pass; P is a multiple of it.
    """
    # Short prompts of a batch consume padding beyond their end: stale slots that later tokens overwrite.
    return _consume(model, cache, prompts, first, jnp.max(lengths) - 1, chunk).at_length(lengths - 1)


def _one_by_one(model, cache, prompts, lengths, shared_chunks):
    """`prefill` of one row after another, each over the chunks that it has itself."""
    width = prompts.shape[1]
    own = [tuple(stored[:, :, :width] for stored in side) for side in (cache.keys, cache.values)]

    def body(i, part):
        # From what the first row holds: the chunks that all begin with, and stale slots beyond, as those of padding.
        one = jax.tree.map(lambda stored: stored[:1], part)
        prompt = jax.lax.dynamic_slice_in_dim(prompts, i, 1)
        first = jnp.where(i == 0, 0, shared_chunks * PREFILL_CHUNK)
        one = _consume(model, one, prompt, first, lengths[i] - 1, min(width, CPU_CHUNK))
        return jax.tree.map(lambda stored, new: jax.lax.dynamic_update_slice_in_dim(stored, new, i, 0), part, one)

    part = jax.lax.fori_loop(0, len(prompts), body, KVCache(*own, cache.length))
    keys, values = (
        tuple(jax.lax.dynamic_update_slice(stored, new, (0, 0, 0, 0)) for stored, new in zip(side, done, strict=True))
        for side, done in ((cache.keys, part.keys), (cache.values, part.values))
    )
    return KVCache(keys, values, lengths - 1)


def _consume(model, cache, prompts, first, end, chunk):
    """The cache after the chunks that hold tokens `first` to `end` of the prompts."""

    def body(i, cache):
        tokens = jax.lax.dynamic_slice_in_dim(prompts, i * chunk, chunk, axis=1)
        return model(tokens, cache.at_length(jnp.full((len(prompts),), i * chunk)))[1]

    return jax.lax.fori_loop(first // chunk, (end + chunk - 1) // chunk, body, cache)


def count_shared_chunks(prompts: np.ndarray, lengths: np.ndarray) -> int:
    """How many whole chunks of `prefill` all prompts int32 `[B, P]` of `lengths` `[B]` begin with alike."""
    alike = np.all(prompts == prompts[:1], axis=0)[: int(lengths.min()) - 1]
    return int(np.argmin(np.append(alike, False))) // PREFILL_CHUNK


def score_draft(target: Transformer, cache: KVCache, last: jax.Array, draft_tokens: jax.Array):
    """The target's pass over the last committed token and the draft.

    Args:
      target: the model that judges.
      cache: its cache, without `last`; takes K + 1 more tokens.
      last: int32 `[B]`.
      draft_tokens: int32 `[B, K]`.

    Returns:
      raw logits f32 `[B, K + 1, V]` (row i predicts draft token i), final-norm states `[B, K + 1, H]` (row i + 1 has
      consumed draft token i), and the cache.
    """
    hidden, cache = target(jnp.concatenate([last[:, None], draft_tokens], axis=1), cache)
    return target.logits(hidden), hidden, cache


def score(model: Transformer, tokens: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Teacher-forced scores of whole sequences.

    Args:
      model: a model of the pair, `pair.target` or `pair.draft`.
      tokens: int32 `[B, T]`.

    Returns:
      logits f32 `[B, T, V]`, row t predicting token t + 1, and final-norm states `[B, T, H]`.

    Raises:
      InputError: tokens of another shape, or outside the vocabulary.
    """
    if not isinstance(model, Transformer):
        raise InputError(f"score takes a model such as pair.target, got {type(model).__name__}")
    if not isinstance(tokens, jax.core.Tracer):
        tokens = np.asarray(tokens)
        vocab = model.config.vocab_size
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab):
            raise InputError(f"tokens run from {tokens.min()} to {tokens.max()}, outside the vocabulary of {vocab}")
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens are int32 [B, T], got {tokens.dtype} {list(tokens.shape)}")
    return _score(model, tokens.astype(np.int32))


@jax.jit
def _score(model, tokens):
    hidden, _ = model(tokens)
    return model.logits(hidden), hidden

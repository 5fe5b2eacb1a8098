"""Teacher-forced scores, the public call `score`; and what prompts begin with alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.protocols import check_structure
from kljudge_jax.core.state import Prefill
from kljudge_jax.core.target import consume, logits_of
from kljudge_jax.errors import InputError
from kljudge_jax.kernels.place import Place, here
from kljudge_jax.models.leaves import head_kind, is_head
from kljudge_jax.models.transformer import Transformer

# Longer prompts go in chunks, so that scores take [B, N, 128, S] and not [B, N, T, S].
PREFILL_CHUNK = 128

# On a CPU a prompt goes alone, in chunks of these many tokens.
CPU_CHUNK = 32


def prefill_plan(model: Any) -> Prefill:
    """How prompts are consumed best where a model lies."""
    alone = (model.storage.place if isinstance(model, Transformer) else here()) == Place("cpu")
    return Prefill(CPU_CHUNK, one_by_one=True) if alone else Prefill(PREFILL_CHUNK)


def count_shared_chunks(prompts: np.ndarray, lengths: np.ndarray) -> int:
    """How many whole chunks of `PREFILL_CHUNK` all prompts int32 `[B, P]` of `lengths` `[B]` begin with alike."""
    # And the token after them, which a drafter may be told of with the last one.
    alike = np.all(prompts == prompts[:1], axis=0)[: int(lengths.min())]
    return max(int(np.argmin(np.append(alike, False))) - 1, 0) // PREFILL_CHUNK


def score(model: Any, tokens: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Teacher-forced scores of whole sequences.

    Args:
      model: a model of the pair, `pair.target` or `pair.draft`, or any other `Model`.
      tokens: int32 `[B, T]`.

    Returns:
      logits f32 `[B, T, V]`, row t predicting token t + 1, and final-norm states `[B, T, H]` (None from a model that
      gives logits alone).

    Raises:
      InputError: tokens of another shape, or outside the vocabulary.
    """
    if not callable(model) or not hasattr(model, "init_cache"):
        raise InputError(f"score takes a model such as pair.target, got {type(model).__name__}")
    if is_head(model):
        raise InputError(f"score takes a model, and an {head_kind(model)} head reads the states of a target")
    check_structure(model, "model")
    if not isinstance(tokens, jax.core.Tracer):
        tokens = np.asarray(tokens)
        vocab = model.vocab_size
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab):
            raise InputError(f"tokens run from {tokens.min()} to {tokens.max()}, outside the vocabulary of {vocab}")
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens are int32 [B, T], got {tokens.dtype} {list(tokens.shape)}")
    return _score(model, tokens.astype(np.int32))


@jax.jit
def _score(model, tokens):
    features, _ = consume(model, tokens, model.init_cache(*tokens.shape))
    return logits_of(model, features), features.hidden

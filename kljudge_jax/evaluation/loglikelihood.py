"""Log-likelihoods of given texts under a model: continuations of contexts, and long texts in windows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.protocols import Model
from kljudge_jax.errors import InputError
from kljudge_jax.generation.score import score
from kljudge_jax.models.leaves import shortest_limit

# Rows and continuations are padded to powers of two from these on, so that few programs are compiled.
_SHORTEST_ROW = 16
_SHORTEST_CONTINUATION = 8

# Logits of so many positions exist at a time, whatever the batch: a large vocabulary would take gigabytes.
_POSITIONS = 128


class Continuation(NamedTuple):
    """Token ids whose likelihood is wanted, and those before them, at least one each."""

    context: Sequence[int]
    tokens: Sequence[int]


class LogLikelihood(NamedTuple):
    """What a model makes of a continuation.

    Attributes:
      total: the sum of its tokens' log-probabilities at temperature 1, in nats.
      greedy: whether greedy decoding would write it.
    """

    total: float
    greedy: bool


def log_likelihoods(
    model: Model, continuations: Sequence[Continuation], batch_size: int = 8, max_length: int | None = None
) -> Iterator[tuple[int, LogLikelihood]]:
    """Teacher-forced log-likelihoods, longest first.

    A row of more than `max_length` tokens loses the first ones of its context. A pass takes `[B, N, T, T]` scores.

    Args:
      model: what scores.
      continuations: what is scored, in any order.
      batch_size: rows of a pass.
      max_length: the most tokens that a row may consume; None is what the model was made for.

    Yields:
      the index of a continuation, and its log-likelihood.

    Raises:
      InputError: a side is empty, a continuation is longer than a row, or the model returns NaN or +inf.
    """
    longest = max_length or shortest_limit(model) or sys.maxsize
    for context, tokens in continuations:
        if not len(context) or not len(tokens):
            raise InputError("a log-likelihood needs at least one token of context and one to score: add text")
        if len(tokens) > longest:
            raise InputError(f"a continuation has {len(tokens)} tokens, and the target takes {longest}: shorten it")
    rows = [np.asarray([*context, *tokens][-(longest + 1) :], np.int32) for context, tokens in continuations]
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), -len(continuations[i].tokens)))
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        width = _bucket(max(len(rows[i]) for i in batch) - 1, _SHORTEST_ROW)
        scored = _bucket(max(len(continuations[i].tokens) for i in batch), _SHORTEST_CONTINUATION)
        padded = np.zeros((batch_size, width), np.int32)
        at, wanted = np.zeros((2, batch_size, scored), np.int32)
        for row, i in enumerate(batch):
            count = len(continuations[i].tokens)
            padded[row, : len(rows[i]) - 1] = rows[i][:-1]
            at[row, :count] = np.arange(len(rows[i]) - 1 - count, len(rows[i]) - 1)
            wanted[row, :count] = rows[i][-count:]
        logprobs, chosen = jax.device_get(_judge(model, padded, at, wanted))
        for row, i in enumerate(batch):
            count = len(continuations[i].tokens)
            total = float(logprobs[row, :count].sum(dtype=np.float64))
            if np.isnan(total):
                raise InputError("the target returns NaN or +inf on this task: load it in another dtype")
            yield i, LogLikelihood(total, bool(chosen[row, :count].all()))


def windows(tokens: Sequence[int], prefix: int, max_length: int) -> list[Continuation]:
    """A long text as continuations that cover each of its tokens once.

    All but the first have at least one token of context, and the last as much as a row takes. The first has `prefix`.

    Args:
      tokens: the text.
      prefix: the token before it.
      max_length: the most tokens that a row may consume.
    """
    found = []
    for begin in range(0, len(tokens), max_length):
        end = min(begin + max_length, len(tokens))
        context = tokens[max(end - max_length - 1, 0) : begin] if begin else [prefix]
        found.append(Continuation(context, tokens[begin:end]))
    return found


@jax.jit
def _judge(model: Model, tokens: jax.Array, at: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities f32 `[B, C]` of tokens `wanted` int32 `[B, C]` after positions `at` int32 `[B, C]` of rows
    `tokens` int32 `[B, T]`, and whether each is the argmax, bool `[B, C]`."""
    logits, hidden = score(model, tokens)
    # The logits of every position are not used, so they are not computed, but of a model that gives nothing else.
    alone = hidden is None
    states = jnp.take_along_axis(logits if alone else hidden, at[..., None], axis=1)
    piece = min(at.shape[1], _POSITIONS)

    def judge(part):
        states, wanted = part
        logits = states if alone else model.logits(states)
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[:, None], axis=-1)[:, 0]
        return logprobs, jnp.argmax(logits, axis=-1) == wanted

    parts = states.reshape(-1, piece, states.shape[-1]), wanted.reshape(-1, piece)
    return jax.tree.map(lambda x: x.reshape(at.shape), jax.lax.map(judge, parts))


def _bucket(length: int, smallest: int) -> int:
    return max(smallest, 1 << (length - 1).bit_length())

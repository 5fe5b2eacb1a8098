"""What a call answers, and how far it has come."""

from __future__ import annotations

import dataclasses

import numpy as np

from kljudge_jax.decoding import stats


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come: new tokens and finished answers of the batch, and seconds since it began."""

    tokens: int
    finished: int
    answers: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns; one entry a prompt.

    Attributes:
      text: the answers, without EOS and without what a stop string cut off; "" where the pair has no tokenizer.
      tokens: int32 `[T]` each, new tokens only, EOS included.
      origin: per token "draft" (the strict rule accepts it), "relaxed" (only this rule does) or "target" (a
        correction or a bonus token).
      stats: counts and times, pooled; `stats.rows[i]` for one prompt.
      kl: with `trace`, f32 `[T]` each: KL(target || draft) at T = 1 in nats, NaN where no draft token stood; infinite
        where the draft's distribution is all at its token.
      logprobs: with `trace`, f32 `[T]` each: log-probability under the target at T = 1.
      cycles: with `trace`, the cycles of each answer.
    """

    text: list[str]
    tokens: list[np.ndarray]
    origin: list[list[str]]
    stats: stats.Stats
    kl: list[np.ndarray] | None = None
    logprobs: list[np.ndarray] | None = None
    cycles: list[list[stats.Cycle]] | None = None

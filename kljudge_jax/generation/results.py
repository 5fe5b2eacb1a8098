"""What a call answers, and how far it has come."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from kljudge_jax.generation.detokenize import split
from kljudge_jax.generation.display import generation_html, pace
from kljudge_jax.generation.stats import Cycle, Stats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come: new tokens and finished answers of the batch, and seconds since it began."""

    tokens: int
    finished: int
    answers: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns; one entry a prompt. A notebook shows its answers token by token.

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
      cycle_costs: with `Adaptive`, f32 `[K + 1]`: what a cycle with n draft tokens was last taken to cost, the
        shortest being 1.
      tokenizer: what `text` was read with; None where the pair has none.
    """

    text: list[str]
    tokens: list[np.ndarray]
    origin: list[list[str]]
    stats: Stats
    kl: list[np.ndarray] | None = None
    logprobs: list[np.ndarray] | None = None
    cycles: list[list[Cycle]] | None = None
    cycle_costs: np.ndarray | None = None
    tokenizer: PreTrainedTokenizerBase | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def pace(self) -> str:
        """What an adaptive draft length came to, in one line: what it drafted, or that it stopped, and why; "" where
        the length was fixed."""
        return pace(self)

    def pieces(self, row: int = 0) -> list[str]:
        """The text of each token of an answer; they add up to it, and to no text without a tokenizer."""
        return [""] * len(self.tokens[row]) if self.tokenizer is None else split(self.tokenizer, self.tokens[row])

    def _repr_html_(self) -> str:
        return generation_html(self)

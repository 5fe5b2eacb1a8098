"""What fewer bits cost: the perplexity of one text under a model kept in several precisions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from kljudge_jax.core.protocols import Model
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.loglikelihood import log_likelihoods, windows
from kljudge_jax.machine import Machine
from kljudge_jax.models.leaves import parameter_bytes, precision
from kljudge_jax.records import Count, Record


class PerplexityRow(Record, frozen=True, kw_only=True):
    """A text under a model kept in one precision: exp of the mean over tokens, and the nats of each window."""

    precision: str
    weight_bytes: Count
    perplexity: float
    nats: tuple[float, ...]


class PerplexityFile(Record, frozen=True, kw_only=True):
    """What `kljudge perplexity` writes (`perplexity.json`): the command line word by word, and a row a precision."""

    schema: Literal[1] = 1
    command: tuple[str, ...]
    target: str
    machine: Machine
    tokens: Count
    rows: tuple[PerplexityRow, ...]


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A text under one model.

    Attributes:
      precision: what the model's matrices are kept as.
      weight_bytes: what all its parameters take.
      tokens: int `[W]`, tokens of each window of the text.
      nats: f64 `[W]`, minus their log-likelihood.
    """

    precision: str
    weight_bytes: int
    tokens: np.ndarray
    nats: np.ndarray

    @property
    def value(self) -> float:
        """exp of the mean over all tokens."""
        return math.exp(self.nats.sum() / self.tokens.sum())

    def to_dict(self) -> dict[str, Any]:
        """The figures as a row of `perplexity.json` holds them."""
        return self.to_record().to_dict()

    def to_record(self) -> PerplexityRow:
        """The same without the tokens of the windows, which all rows of a text share."""
        return PerplexityRow(
            precision=self.precision,
            weight_bytes=self.weight_bytes,
            perplexity=self.value,
            nats=tuple(self.nats.tolist()),
        )

    def beside(self, first: Perplexity, draws: int = 2000, seed: int = 0) -> tuple[float, tuple[float, float]]:
        """How much higher it is than another model's on the same windows, as a share, and its 95 % interval.

        The interval is the percentile bootstrap's over windows, which are resampled whole.
        """
        more = self.nats - first.nats
        picks = np.random.default_rng(seed).integers(0, len(more), (draws, len(more)))
        shares = np.expm1(more[picks].sum(axis=1) / self.tokens[picks].sum(axis=1))
        low, high = np.quantile(shares, [0.025, 0.975])
        return math.expm1(more.sum() / self.tokens.sum()), (float(low), float(high))


def perplexity(model: Model, tokens: Sequence[int], prefix: int, window: int = 512, batch_size: int = 4) -> Perplexity:
    """A text under a model, in windows that each score `window` tokens; see `loglikelihood.windows`.

    Args:
      model: what scores.
      tokens: the text's token ids.
      prefix: the token before it.
      window: the most tokens that the model reads at a time.
      batch_size: windows of a pass.

    Raises:
      InputError: the text is empty, or the model returns NaN or +inf.
    """
    if not len(tokens):
        raise InputError("the text is empty: there is nothing to score")
    parts = windows(tokens, prefix, window)
    totals = dict(log_likelihoods(model, parts, batch_size, window))
    return Perplexity(
        precision(model),
        parameter_bytes(model),
        np.array([len(part.tokens) for part in parts]),
        np.array([-totals[i].total for i in range(len(parts))]),
    )


def perplexity_table(found: Sequence[Perplexity]) -> list[list[str]]:
    """A row for each precision, beside the first."""
    cells = [["precision", "weights", "perplexity", "more than the first", "95 %"]]
    for one in found:
        share, (low, high) = one.beside(found[0])
        beside = ["", ""] if one is found[0] else [f"{share:+.2%}", f"{low:+.2%} to {high:+.2%}"]
        cells.append([one.precision, f"{one.weight_bytes / 1e9:.3g} GB", f"{one.value:.4f}", *beside])
    return cells

"""What a baseline is asked and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.generation.results import Generation
from kljudge_jax.generation.stats import Stats
from kljudge_jax.models.pair import ModelPair


@dataclasses.dataclass(frozen=True)
class Request:
    """How prompts are to be decoded.

    Attributes:
      config: as rules are decoded; a baseline that drafts nothing has no draft length, and none takes its drafter.
      key: one PRNG key a prompt `[B]`, in place of `config.seed`.
      answered: called with the index of a prompt and its answer, soon after it ends.
    """

    config: DecodingConfig
    key: jax.Array
    answered: Callable[[int, Answer], None] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
      text: without its EOS.
      tokens: new tokens, EOS included, int32 `[N]`.
      stats: its counts. `cycles` are passes of the model that answers, the prompt's left out if it gave no token.
      batch: index of the first prompt of the batch or queue that this one was decoded in.
      notes: what else a record of it holds.
    """

    text: str
    tokens: np.ndarray
    stats: Stats
    batch: int = 0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class Baseline(Protocol):
    """A way to answer prompts that is no verification rule: a frozen dataclass, named by a spec string.

    Attributes:
      drafts: it depends on the draft length.
      needs_draft: it needs `pair.draft`.
    """

    drafts: ClassVar[bool]
    needs_draft: ClassVar[bool]

    def check(self) -> None:
        """Raises InputError if this installation or device cannot run it."""

    def answer(self, pair: ModelPair, prompts: Sequence[Any], request: Request) -> list[Answer]:
        """One answer a prompt, in their order; prompts are as `generate` takes them."""


def answers_of(result: Generation) -> list[Answer]:
    """What `generate` returned, prompt by prompt."""
    return [
        # A letter a token: d(raft), r(elaxed) or t(arget).
        Answer(text, tokens, stats, notes={"origin": "".join(name[0] for name in origin)})
        for text, tokens, stats, origin in zip(
            result.text, result.tokens, result.stats.rows, result.origin, strict=True
        )
    ]

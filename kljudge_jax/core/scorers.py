"""How the target looks at a draft: one view of it, several drafts side by side, or a second look after a reflection."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Features
from kljudge_jax.core.target import at_places, consume, logits_of, until


class Scores(NamedTuple):
    """What a target pass over a draft of w tokens gives.

    Attributes:
      logits: raw, f32 `[B, w + 1, V]`; row i predicts draft token i.
      features: of `w + 1` positions; row i + 1 has consumed draft token i.
      cache: its length is of no use.
      reflected: raw logits of the second view, shaped as `logits`, or None where there is none.
    """

    logits: jax.Array
    features: Features
    cache: Any
    reflected: jax.Array | None = None


class Scorer(Protocol):
    """A way of scoring: a frozen, hashable dataclass, part of the compiled program.

    Attributes:
      drafts: how many drafts each row has; so many rows of the caches belong to it.
      positions: how many positions of a pass each draft token takes.
    """

    @property
    def drafts(self) -> int: ...

    @property
    def positions(self) -> int: ...

    def slots(self, draft_length: int) -> int:
        """How many slots a pass over a draft of that length writes."""

    def score(
        self,
        target: Any,
        cache: Any,
        last: jax.Array,
        tokens: jax.Array,
        count: jax.Array,
        layers: tuple[int, ...] = (),
    ) -> Scores:
        """One pass over `last` int32 `[B]` and the first `count` `[B]` of `tokens` int32 `[B, w]`; `layers` are those
        of the target whose states are wanted."""


@dataclasses.dataclass(frozen=True)
class DraftScorer:
    """Scores drafts as they are: `drafts` of them a row, all in one pass."""

    drafts: int = 1

    @property
    def positions(self) -> int:
        return self.drafts

    def slots(self, draft_length: int) -> int:
        return draft_length + 1

    def score(
        self,
        target: Any,
        cache: Any,
        last: jax.Array,
        tokens: jax.Array,
        count: jax.Array,
        layers: tuple[int, ...] = (),
    ) -> Scores:
        features, cache = consume(target, jnp.concatenate([last[:, None], tokens], axis=1), cache, layers)
        return Scores(logits_of(target, features), features, cache)


@dataclasses.dataclass(frozen=True)
class ReflectionScorer:
    """Scores a draft twice in one pass: as it is, and as a copy that stands after the draft and a reflection prompt.

    Attributes:
      prompt: the reflection prompt's token ids, at least one.
    """

    prompt: tuple[int, ...]
    drafts: ClassVar[int] = 1
    positions: ClassVar[int] = 2

    def slots(self, draft_length: int) -> int:
        return 1 + draft_length + len(self.prompt) + draft_length

    def score(
        self,
        target: Any,
        cache: Any,
        last: jax.Array,
        tokens: jax.Array,
        count: jax.Array,
        layers: tuple[int, ...] = (),
    ) -> Scores:
        """See `Scorer`. A row whose draft is empty has nothing to reflect on: its second view is its first."""
        width = tokens.shape[1]
        if width == 0:
            return DraftScorer().score(target, cache, last, tokens, count, layers)
        # The copy follows the real draft closely, for what stands between the two would be read as a part of it.
        place = jnp.arange(self.slots(width))[None]
        first = jnp.concatenate([last[:, None], tokens], axis=1)
        end = count[:, None] + 1  # of the first view
        copy = end + len(self.prompt)
        packed = jnp.where(
            place < end,
            jnp.take(first, jnp.minimum(place[0], width), axis=1),
            jnp.where(
                place < copy,
                jnp.asarray(self.prompt, jnp.int32)[jnp.clip(place - end, 0, len(self.prompt) - 1)],
                jnp.take_along_axis(tokens, jnp.clip(place - copy, 0, width - 1), axis=1),
            ),
        )
        features, cache = consume(target, packed, cache, layers)
        # The last token of the reflection prompt predicts the first of the copy.
        second = logits_of(target, at_places(features, copy - 1 + jnp.arange(width + 1)[None]))
        features = until(features, width + 1)
        logits = logits_of(target, features)
        return Scores(logits, features, cache, jnp.where((count > 0)[:, None, None], second, logits))

"""Drafting by looking the last tokens up in what is there already."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Models, Request, Window
from kljudge_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Proposes what followed the last tokens when they stood in the prompt or the answer before.

    The longest match of up to `ngram` tokens counts, the most recent of those; without any there is no draft. A match
    so close to the end that its continuation runs into it goes on with what was just proposed, as a loop would.

    Its distribution is all at its token: 0 there and -inf elsewhere. So lossless rules stay lossless (a token is
    accepted with the target's probability of it), KL(draft || target) is -log p(d), and the draft's entropy is 0. A
    rule that needs KL(target || draft), as `KLJudge`, or the draft's states is refused with it.

    Source: prompt lookup decoding (Saxena, 2023), and LLMA, arXiv 2304.04487.

    Attributes:
      ngram: the most tokens that are matched, from 1 on.

    Raises:
      InputError: `ngram` is no such number.
    """

    ngram: int = 3

    uses_draft_model: ClassVar[bool] = False
    has_hidden: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    always_full: ClassVar[bool] = False

    def __post_init__(self):
        if not isinstance(self.ngram, int) or isinstance(self.ngram, bool) or self.ngram < 1:
            raise InputError(f"give PromptLookup a whole number from 1 on as its ngram, not {self.ngram!r}")

    def check(self, pair: Any) -> None:
        """It needs no model."""

    def reads(self, pair: Any) -> None:
        """No weights: a draft token costs nothing."""

    def init(self, models: Models, batch: int, slots: int) -> Any:
        """See `Drafter`: all that it looks at is in the sequence."""
        return ()

    def observe(self, models: Models, state: Any, window: Window) -> Any:
        """See `Drafter`."""
        return state

    def propose(
        self, models: Models, target_cache: Any, state: Any, context: Context, request: Request
    ) -> tuple[Draft, Any, Any]:
        """See `Drafter`."""
        tokens, found = jax.vmap(lambda sequence, last: self._look_up(sequence, last, request.draft_length))(
            context.sequence, context.consumed
        )
        count = jnp.where(found, jnp.minimum(context.wanted, request.draft_length), 0)
        return Draft(tokens, count), target_cache, state

    def _look_up(self, sequence: jax.Array, last: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """The continuation int32 `[length]` of one sequence `[S]` that ends at `last`, and whether there is one."""
        place = jnp.arange(sequence.shape[0])
        # matched[e]: how many tokens up to e equal those up to the end.
        alike, matched = place < last, jnp.zeros_like(place)
        for back in range(min(self.ngram, sequence.shape[0])):
            earlier = jnp.roll(sequence, back) == sequence[jnp.maximum(last - back, 0)]
            alike &= earlier & (place >= back)
            matched += alike.astype(jnp.int32)
        end = jnp.max(jnp.where(matched == jnp.max(matched), place, -1))
        period = last - end
        tokens = sequence[end + 1 + jnp.arange(length) % jnp.maximum(period, 1)]
        return tokens, jnp.max(matched) > 0

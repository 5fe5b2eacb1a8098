"""Drafting with the pair's draft model, one token after another."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Models, Request, Window
from kljudge_jax.core.target import at_places, check_rollback, consume, new_cache
from kljudge_jax.drafters.rollout import chain_of, roll_out
from kljudge_jax.errors import InputError

# How many tokens at a time a draft takes that was not asked for some cycles.
CATCH_UP = 16


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """Drafts with the pair's draft model, any `Model`; what it remembers is that model's cache.

    A fixed length is one `lax.scan`; one that adapts is a `lax.while_loop`, which ends when no row wants more.
    """

    layers: ClassVar[tuple[int, ...]] = ()
    uses_draft_model: ClassVar[bool] = True
    has_hidden: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    def check(self, pair: Any) -> None:
        """Raises InputError if it cannot draft for this pair."""
        if pair.draft is None:
            raise InputError(
                "the pair has no draft model: load one, draft with PromptLookup() or SelfDraft(layers), or use "
                "verifier=None for plain decoding"
            )

    def reads(self, pair: Any) -> Any:
        """The model whose weights one more draft token takes."""
        return pair.draft

    def init(self, models: Models, batch: int, slots: int) -> Any:
        """See `Drafter`: the draft model's cache."""
        return new_cache(models.draft, batch, slots, "draft")

    def observe(self, models: Models, state: Any, window: Window) -> Any:
        """See `Drafter`. It consumes prompts with the target; what a cycle commits it takes when it drafts again."""
        end = window.start + window.valid
        if not window.prompt:
            # It may have consumed less, where no row wanted a draft.
            return state.at_length(jnp.minimum(state.length, end))
        _, cache = consume(models.draft, window.tokens, state.at_length(window.start), whose="draft")
        return cache.at_length(jnp.where(window.valid > 0, end, state.length))

    def propose(
        self, models: Models, target_cache: Any, state: Any, context: Context, request: Request
    ) -> tuple[Draft, Any, Any]:
        """See `Drafter`. Its cache may lack the token before the last one, and all those before it that came of cycles
        without a draft."""
        # A draft of which nothing is kept, and where tokens are caught up with, those of the first piece.
        again = CATCH_UP - 1 if request.skips else 0
        check_rollback(state, request.draft_length + request.with_hidden + again, "draft")
        state, cache = _consume_last(models.draft, state, context, request)
        draft, cache = roll_out(chain_of(models.draft), cache, state, context, request)
        return draft, target_cache, cache


def _consume_last(model: Any, cache: Any, context: Context, request: Request):
    """What the model computes for each row's last token, and the cache with all of the row."""

    def taken(start, width):
        return jnp.take_along_axis(context.sequence, start[:, None] + jnp.arange(width)[None], axis=1)

    # After cycles without a draft it lacks those tokens too, which are taken in pieces.
    def catch_up(cache):
        width = min(CATCH_UP, cache.slots)
        start = jnp.clip(cache.length, 0, jnp.maximum(context.consumed + 1 - width, 0))
        _, cache = consume(model, taken(start, width), cache.at_length(start), whose="draft")
        return cache.at_length(jnp.minimum(start + width, context.consumed + 1))

    if request.skips:
        cache = jax.lax.while_loop(lambda cache: jnp.max(context.consumed - cache.length) > 1, catch_up, cache)

    # When the whole last draft was accepted, its last token is not in the cache yet. Instead of asking, this always
    # takes two tokens: at one row a product costs what it costs at two. A row of one token takes a stale one after its
    # own, whose slot the next step overwrites.
    start = jnp.maximum(context.consumed - 1, 0)
    features, cache = consume(model, taken(start, 2), cache.at_length(start), whose="draft")
    last = at_places(features, (context.consumed - start)[:, None])
    return last, cache.at_length(context.consumed + 1)

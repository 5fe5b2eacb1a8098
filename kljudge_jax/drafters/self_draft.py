"""Drafting with the target's own first layers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Models, Request, Window
from kljudge_jax.core.target import consume
from kljudge_jax.drafters.rollout import chain_of, roll_out
from kljudge_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SelfDraft:
    """Drafts with the first `layers` of the target, then its final norm and head: early exit, no second model.

    It writes the target's own cache for its layers, which the target's pass overwrites with the same tokens; so both
    share one length, and nothing of the prompt is computed twice. A target that was not trained to exit early drafts
    poorly: Draft & Verify, arXiv 2309.08168, and LayerSkip, arXiv 2404.16710, choose or train the layers.

    Attributes:
      layers: how many, from 1 to one less than the target has.

    Raises:
      InputError: `layers` is no such number; too many are refused by `generate`, which knows the target.
    """

    layers: int

    uses_draft_model: ClassVar[bool] = False
    has_hidden: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    def __post_init__(self):
        if not isinstance(self.layers, int) or isinstance(self.layers, bool) or self.layers < 1:
            raise InputError(f"give SelfDraft a whole number from 1 on as its layers, not {self.layers!r}")

    def check(self, pair: Any) -> None:
        """Raises InputError if it cannot draft for this pair."""
        if not callable(getattr(pair.target, "first", None)):
            raise InputError(
                f"SelfDraft needs a target with a method 'first', and {type(pair.target).__name__} has none: draft "
                "with a model or PromptLookup()"
            )
        total = pair.target.num_layers
        if self.layers >= total:
            raise InputError(
                f"SelfDraft({self.layers}) needs a target of more layers than that, and this one has {total}: "
                "give it fewer"
            )

    def reads(self, pair: Any) -> Any:
        """The model whose weights one more draft token takes."""
        return pair.target.first(self.layers)

    def init(self, models: Models, batch: int, slots: int) -> Any:
        """See `Drafter`: it works in the target's cache, and remembers nothing of its own."""
        self.check(models)
        return ()

    def observe(self, models: Models, state: Any, window: Window) -> Any:
        """See `Drafter`."""
        return state

    def propose(
        self, models: Models, target_cache: Any, state: Any, context: Context, request: Request
    ) -> tuple[Draft, Any, Any]:
        """See `Drafter`."""
        model: Any = models.target.first(self.layers)  # type: ignore[attr-defined]  # `check` has seen it
        last = jnp.take_along_axis(context.sequence, context.consumed[:, None], axis=1)
        features, cache = consume(model, last, target_cache.at_length(context.consumed), whose="draft")
        draft, cache = roll_out(chain_of(model), cache, features, context, request)
        return draft, cache, state

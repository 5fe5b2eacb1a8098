"""Drafting with the target's own first layers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from kljudge_jax.decoding.draft import bytes_read, roll_out
from kljudge_jax.decoding.drafter import Caches, Context, Draft, Models, Request
from kljudge_jax.decoding.sampling import Sampling
from kljudge_jax.errors import InputError
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, assemble, parameters


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

    def check(self, pair: ModelPair) -> None:
        total = pair.target.config.num_layers
        if self.layers >= total:
            raise InputError(
                f"SelfDraft({self.layers}) needs a target of more layers than that, and this one has {total}: "
                "give it fewer"
            )

    def cost(self, pair: ModelPair) -> float:
        return bytes_read(first_layers(pair.target, self.layers)) / bytes_read(pair.target)

    def propose(
        self, models: Models, caches: Caches, context: Context, sampling: Sampling, request: Request
    ) -> tuple[Draft, Caches]:
        """See `Drafter`."""
        whole, count = caches.target, self.layers
        model = first_layers(models.target, count)

        cache = KVCache(whole.keys[:count], whole.values[:count], context.consumed)
        last = jnp.take_along_axis(context.sequence, context.consumed[:, None], axis=1)
        hidden, cache = model(last, cache)
        draft, written = roll_out(model, cache, hidden[:, 0], context, sampling, request)
        merged = KVCache(written.keys + whole.keys[count:], written.values + whole.values[count:], context.consumed)
        return draft, caches._replace(target=merged)


def first_layers(model: Transformer, count: int) -> Transformer:
    """The model cut after `count` layers, with the same arrays."""
    config = model.config
    cut = dataclasses.replace(config, num_layers=count, windows=config.windows[:count])
    return assemble(cut, parameters(model), model.storage)

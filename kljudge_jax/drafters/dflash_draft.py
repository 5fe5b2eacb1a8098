"""Drafting with a head that fills in a block: DFlash."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Models, Request, Window
from kljudge_jax.core.sampling import draw, process_logits
from kljudge_jax.errors import InputError
from kljudge_jax.models.dflash import DFlashHead
from kljudge_jax.verification.distributions import Normaliser


@dataclasses.dataclass(frozen=True)
class DFlashDraft:
    """Drafts with the pair's draft, a `DFlashHead`; what it remembers is that head's cache.

    Every target pass gives it the states of its layers, of which it keeps keys and values. A draft is one pass over the
    last token and `block_size - 1` masks, however many of them are wanted: the first K are the draft. Each token is
    drawn from the distribution at its mask, which knows of no other token of the draft: so the draft's distribution
    given its tokens is the product of those, and lossless rules stay lossless.

    Source: DFlash, arXiv 2602.06036.

    Attributes:
      layers: the target's layers that the head reads.
      block_size: the tokens of a block, the last one known included: a draft has fewer.
    """

    layers: tuple[int, ...]
    block_size: int

    uses_draft_model: ClassVar[bool] = True
    has_hidden: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    @property
    def tokens_per_pass(self) -> int:
        """How many draft tokens share what a pass costs."""
        return self.block_size - 1

    def check(self, pair: Any) -> None:
        """Raises InputError if it cannot draft for this pair."""
        if not isinstance(pair.draft, DFlashHead):
            raise InputError("the pair's draft is no DFlash head: load one with ModelPair.from_pretrained(draft=...)")
        pair.draft.check_target(pair.target, "the target")

    def reads(self, pair: Any) -> Any:
        """What holds the weights that a pass takes: the layers, not `fc`, which the target's states go through; and the
        target's output rows, where they are known."""
        head, target = pair.draft, pair.target
        rows = getattr(target, "head", None)
        return head.layers, head.final_norm, getattr(target, "embedding", None) if rows is None else rows

    def observes(self, pair: Any) -> Any:
        """What holds the weights that it takes to be told of a target pass: those of the context's keys and values."""
        head = pair.draft
        return head.fc, [(block.attention.key, block.attention.value) for block in head.layers]

    def init(self, models: Models, batch: int, slots: int) -> Any:
        """See `Drafter`."""
        return models.draft.init_cache(batch, slots)

    def observe(self, models: Models, state: Any, window: Window) -> Any:
        """See `Drafter`."""
        cache = models.draft.observe(window.features.layers, state.at_length(window.start))
        return cache.at_length(jnp.where(window.valid > 0, window.start + window.valid, state.length))

    def propose(
        self, models: Models, target_cache: Any, state: Any, context: Context, request: Request
    ) -> tuple[Draft, Any, Any]:
        """See `Drafter`."""
        length, sampling = request.draft_length, context.sampling
        if length >= self.block_size:
            raise InputError(
                f"a DFlash head of blocks of {self.block_size} drafts at most {self.block_size - 1} tokens: lower the "
                f"draft length of {length}"
            )
        last = jnp.take_along_axis(context.sequence, context.consumed[:, None], axis=1)
        masks = jnp.broadcast_to(0 * last + models.draft.config.mask_id, (last.shape[0], self.block_size - 1))
        target: Any = models.target  # which has more than a `Model`: see `DFlashHead.check_target`
        embeddings = target.embed(jnp.concatenate([last, masks], axis=1))
        states = models.draft(embeddings, state.at_length(context.consumed))
        raw = target.logits(states[:, 1 : length + 1]).astype(jnp.float32)
        processed = process_logits(raw, sampling)
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(context.keys, jnp.arange(length))
        tokens = jax.vmap(jax.vmap(draw, (0, 0, None)), (0, 0, None))(keys, processed, sampling)
        count = 0 * context.consumed + length
        if request.confidence:
            # By distributions alone: to drop a token for what it is would bias what is left. NaN goes on, so that a
            # broken model is seen and not taken for an unsure one.
            sure = ~(Normaliser.of(raw).top < request.confidence)
            count = jnp.sum(jnp.cumprod(sure.astype(jnp.int32), axis=1), axis=1)
        if request.shortens:
            count = jnp.minimum(count, context.wanted)
        return Draft(tokens, count, None if sampling.greedy else processed, raw), target_cache, state

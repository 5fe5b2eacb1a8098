"""Drafting with a head that reads the target's states: a chain of EAGLE-3."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Features, Models, Request, Window
from kljudge_jax.drafters.rollout import Chain, roll_out
from kljudge_jax.errors import InputError
from kljudge_jax.models.eagle3 import Eagle3Head


class Eagle3State(NamedTuple):
    """What the drafter remembers; B rows.

    Attributes:
      cache: the head's keys and values, an entry for each token that the target has consumed.
      output: `[B, H]`, the head's state at each row's last entry: the next draft begins with it.
    """

    cache: Any
    output: jax.Array


@dataclasses.dataclass(frozen=True)
class Eagle3Draft:
    """Drafts with the pair's draft, an `Eagle3Head`.

    Every target pass gives it the states of its layers: they become entries of the head's cache, with the tokens that
    followed. A draft goes on from there with the head's own output in place of the target's states.

    Source: EAGLE-3, arXiv 2503.01840; a chain, no tree.

    Attributes:
      layers: the target's layers that the head reads.
    """

    layers: tuple[int, ...]

    uses_draft_model: ClassVar[bool] = True
    has_hidden: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    always_full: ClassVar[bool] = True

    def check(self, pair: Any) -> None:
        """Raises InputError if it cannot draft for this pair."""
        if not isinstance(pair.draft, Eagle3Head):
            raise InputError("the pair's draft is no EAGLE-3 head: load one with ModelPair.from_pretrained(draft=...)")
        pair.draft.check_target(pair.target, "the target")

    def reads(self, pair: Any) -> Any:
        """What holds the weights that one more draft token takes: the layer and the output rows. Embeddings are
        gathered."""
        return pair.draft.layers, *self.reads_first(pair)

    def reads_first(self, pair: Any) -> Any:
        """The same of the first token of a draft, for which the layer has run: the output rows."""
        return pair.draft.final_norm, pair.draft.head

    def observes(self, pair: Any) -> Any:
        """What holds the weights that it takes to be told of a target pass: what joins the target's states, and the
        layer."""
        return pair.draft.fc, pair.draft.layers

    def init(self, models: Models, batch: int, slots: int) -> Any:
        """See `Drafter`."""
        head = models.draft
        cache = head.init_cache(batch, slots)
        return Eagle3State(cache, jnp.zeros((batch, head.config.decoder.hidden_size), head.between))

    def observe(self, models: Models, state: Any, window: Window) -> Any:
        """See `Drafter`. What the head drafted is overwritten with the target's states."""
        head = models.draft
        embeddings = head.embed(window.next_tokens, models.target)
        features = head.features(window.features.layers)
        outputs, cache = head(features, embeddings, state.cache.at_length(window.start))
        seen = window.valid > 0
        last = jnp.maximum(window.valid - 1, 0)[:, None, None]
        output = jnp.where(seen[:, None], jnp.take_along_axis(outputs, last, axis=1)[:, 0], state.output)
        length = jnp.where(seen, window.start + window.valid, state.cache.length)
        return Eagle3State(cache.at_length(length), output)

    def propose(
        self, models: Models, target_cache: Any, state: Any, context: Context, request: Request
    ) -> tuple[Draft, Any, Any]:
        """See `Drafter`."""
        head = models.draft

        def step(token: jax.Array, state: Eagle3State) -> tuple[Features, Eagle3State]:
            embeddings = head.embed(token[:, None], models.target)
            outputs, cache = head(state.output[:, None], embeddings, state.cache)
            return Features(outputs), Eagle3State(cache, outputs[:, 0])

        # Over the tokens that it knows; the rest of the vocabulary is -inf, and written once.
        known = None if head.config.draft_vocab == head.vocab_size else head.ids[...]
        chain = Chain(step, lambda features: head.draft_logits(features.hidden), known, head.spread)
        draft, after = roll_out(chain, state, Features(state.output[:, None]), context, request)
        # The output is kept as the target's pass left it: a cycle that is told of no token goes on from there.
        return draft, target_cache, Eagle3State(after.cache.at_length(state.cache.length), state.output)

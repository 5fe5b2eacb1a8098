"""Verification against a mixture of the two models."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import is_argmax, probabilities
from kljudge_jax.verification.parameters import probability
from kljudge_jax.verification.rule import Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class Ensemble(TokenRule):
    r"""Speculative sampling against m = weight p + (1 - weight) q: what is drafted follows m, the bonus token p.

    Accept d with probability min(1, m(d) / q(d)) and correct from norm(max(m - q, 0)), which is norm(max(p - q, 0)) for
    any weight above 0. Greedy, in a form of ours: accept iff d is the argmax of m at temperature 1; the target's argmax
    corrects. A weight of 1 is the strict rule, 0 is the draft.

    Maths:
      $$ m = w p + (1 - w) q, \quad P(\text{accept } d) = \min\left(1, \frac{m(d)}{q(d)}\right) $$

    Source: DIVERSED, arXiv 2604.07622 (second-hand), with a constant weight where the paper learns one.

    Attributes:
      weight: the target's share, 0 to 1.
    """

    weight: float = probability(relaxes="down")

    spec_name = "ensemble"
    source = "DIVERSED, arXiv 2604.07622 (second-hand)"
    ours = "its greedy form"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        count = inputs.draft_tokens.shape[0]

        def greedy():
            target = probabilities(inputs.raw_target_logits[:count])
            mixed = self.weight * target + (1.0 - self.weight) * probabilities(inputs.raw_draft_logits)
            # Logits that differ can have one probability in float32: among equals the target's own order decides.
            best = mixed == jnp.max(mixed, axis=-1, keepdims=True)
            order = jnp.maximum(inputs.raw_target_logits[:count], jnp.finfo(jnp.float32).min)
            chosen = is_argmax(jnp.where(best, order, -jnp.inf), inputs.draft_tokens)
            return (chosen & jnp.any(best, axis=-1)).astype(jnp.float32)

        def sampled():
            # An infinite ratio (q(d) = 0) is bounded first: times a weight of 0 it would be no number.
            return self.weight * odds.strict() + (1.0 - self.weight)

        return jax.lax.cond(inputs.greedy, greedy, sampled)

"""Verification against the target, raised at the draft token by as much as a bound on the divergence allows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import Normaliser, excess, token_probability
from kljudge_jax.verification.parameters import number
from kljudge_jax.verification.rule import Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class Cactus(TokenRule):
    r"""Speculative sampling against h, the target raised at d: h(d) = g = min(1, p(d) + sqrt(2 delta p(d) (1 - p(d)))).

    The other tokens share what is left: h(v) = p(v) (1 - g) / (1 - p(d)), and 0 where p(d) = 1. Accept d with
    probability min(1, g / q(d)), correct from norm(max(h - q, 0)). A delta of 0 is the strict rule. Greedy (ours; at
    temperature 0 the published form never differs from the strict rule): accept iff d is the argmax of h at
    temperature 1.

    Maths:
      $$ h(d) = \min\left(1, p(d) + \sqrt{2 \delta p(d) (1 - p(d))}\right) $$

      $$ h(v) = p(v) \frac{1 - h(d)}{1 - p(d)} $$

      $$ P(\text{accept } d) = \min\left(1, \frac{h(d)}{q(d)}\right) $$

    Source: Cactus, arXiv 2604.04987 (paper and code).

    Attributes:
      delta: about KL(h || p) in nats, 0 or more.
    """

    delta: float = number(minimum=0.0, relaxes="up")

    spec_name = "cactus"
    source = "Cactus, arXiv 2604.04987 (paper and code)"
    ours = "its greedy form"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        def greedy():
            logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
            p, top = token_probability(logits, inputs.draft_tokens), Normaliser.of(logits).top
            raised, left = self._raise(p, 1.0 - p)
            # h(d) against h of another best token, both times 1 - p(d); a match beats nothing, but is strict.
            return jnp.maximum(odds.strict(), (raised * (1.0 - p) > top * left).astype(jnp.float32))

        def sampled():
            raised, _ = self._raise(jnp.exp(odds.log_target), -jnp.expm1(odds.log_target))
            log_ratio = jnp.log(raised) - odds.log_draft
            return jnp.where(raised > 0, jnp.minimum(1.0, jnp.exp(log_ratio)), 0.0)

        return jax.lax.cond(inputs.greedy, greedy, sampled)

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        at_token = jnp.arange(p.shape[0]) == inputs.draft_tokens[num_accepted]
        others = jnp.sum(jnp.where(at_token, 0.0, p))
        raised, left = self._raise(jnp.sum(jnp.where(at_token, p, 0.0)), others)
        scale = jnp.where(others > 0, left / others, 0.0)
        return excess(jnp.where(at_token, raised, p * scale), q)

    def _raise(self, p: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
        """g and 1 - g of p(d) and 1 - p(d), which is given because 1 - p loses the digits of a small rest."""
        lift = jnp.minimum(jnp.sqrt(2.0 * self.delta * p * others), others)
        return p + lift, others - lift

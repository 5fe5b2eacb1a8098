"""Medusa's rule: keep what is typical of the target."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import entropy, token_probability
from kljudge_jax.verification.parameters import number, probability
from kljudge_jax.verification.rule import ThresholdRule, register


@register
@dataclasses.dataclass(frozen=True)
class TypicalAcceptance(ThresholdRule):
    r"""Accept d iff p(d) > min(epsilon, alpha exp(-H(p))): a hard floor, and a softer one where the target is unsure.

    p is read at temperature 1, whatever the sampling temperature. A rejected token is replaced by one drawn from p:
    with floors so high that nothing passes, the distribution is the target's. The target's argmax always passes while
    alpha is below 1, for max p >= exp(-H(p)).

    The greedy form is ours: it relaxes, by the same test. Medusa's own at temperature 0 is plain argmax matching, which
    is `exact`, so that what a greedy run of this rule loses is no loss of Medusa's.

    Maths:
      $$ \text{accept } d \iff p(d) > \min\left(\epsilon, \alpha e^{-H(p)}\right) $$

    Source: Medusa, arXiv 2401.10774 (code), which reads p at the sampling temperature.

    Attributes:
      epsilon: the probability above which a token always passes.
      alpha: multiplies exp(-H(p)).
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    epsilon: float = number(0.3, minimum=0.0, relaxes="down")
    alpha: float = number(0.09, minimum=0.0, relaxes="down")
    confidence: float = probability(1.0)

    spec_name = "typical"
    source = "Medusa, arXiv 2401.10774 (code)"
    ours = "its greedy form: Medusa's at temperature 0 is the strict rule"
    keeps_strict = False

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        floor = jnp.minimum(self.epsilon, self.alpha * jnp.exp(-entropy(logits)))
        return token_probability(logits, inputs.draft_tokens) > floor

"""Rules that judge nothing: the controls that every judge has to beat."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.parameters import probability
from kljudge_jax.verification.rule import ALL_OURS, Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class AcceptAll(TokenRule):
    r"""Accept every draft token: the speed that no rule can pass, and the draft's own quality.

    Maths:
      $$ P(\text{accept } d) = 1 $$
    """

    spec_name = "all"
    source = "a control of ours"
    ours = ALL_OURS

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        return jnp.ones_like(odds.log_target)


@register
@dataclasses.dataclass(frozen=True)
class RandomAcceptance(TokenRule):
    r"""Accept what the strict rule accepts, and a mismatch with probability `rate`.

    What a judge gains at equal acceptance over this one is what its judgement is worth. A rate of 0 is the strict rule.
    The correction is the strict rule's.

    Maths:
      $$ P(\text{accept } d) = s + (1 - s) r, \quad s = \min\left(1, \frac{p(d)}{q(d)}\right) $$

    Attributes:
      rate: probability that a token which the strict rule rejects is kept.
    """

    rate: float = probability(relaxes="up")

    spec_name = "random"
    source = "a control of ours"
    ours = ALL_OURS

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        strict = odds.strict()
        return strict + (1.0 - strict) * self.rate


@register
@dataclasses.dataclass(frozen=True)
class SyntheticAcceptance(TokenRule):
    r"""Accept each draft token with probability `rate`, whatever it is: speed at a chosen acceptance, for timing.

    The text means nothing. A rejected token is replaced by one drawn from p.

    Maths:
      $$ P(\text{accept } d) = r $$

    Attributes:
      rate: probability that a draft token is kept.
    """

    rate: float = probability()

    spec_name = "synthetic"
    source = "a control of ours"
    ours = ALL_OURS

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        return jnp.full_like(odds.log_target, self.rate)

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        return p

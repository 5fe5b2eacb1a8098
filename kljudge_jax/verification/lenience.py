"""Speculative sampling with odds that are kinder to the draft."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.parameters import number
from kljudge_jax.verification.rule import Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class Lenience(TokenRule):
    r"""Accept d with probability min(1, p(d) / (factor q(d))), correct from norm(max(p - q, 0)).

    Greedy: accept iff p(d) >= factor max p, at temperature 1. A factor of 1 is the strict rule, save that a greedy tie
    with the argmax passes.

    Maths:
      $$ P(\text{accept } d) = \min\left(1, \frac{p(d)}{\ell q(d)}\right) $$

    Source: Leviathan et al., arXiv 2211.17192, appendix A.5 (paper). Its greedy form is AdaptiveSpec's test of
    one token (arXiv 2609.02897), there above a factor K and not at it: `adaptive:K` is another name of it.

    Attributes:
      factor: l, above 0 and up to 1; the smaller, the more is accepted.
    """

    factor: float = number(minimum=0.0, maximum=1.0, open_below=True, relaxes="down")

    spec_name = "lenience"
    source = "arXiv 2211.17192, appendix A.5 (paper)"
    aliases: ClassVar[dict[str, str]] = {
        "adaptive": "AdaptiveSpec's test of one token, arXiv 2609.02897 (second-hand), greedy"
    }

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        return _lenient(inputs, odds, self.factor)


@register
@dataclasses.dataclass(frozen=True)
class Mentored(TokenRule):
    r"""Accept d with probability min(1, p(d) / ((1 - alpha) q(d))), correct from p itself.

    Greedy, in a form of ours: accept iff p(d) >= (1 - alpha) max p, at temperature 1, and an alpha of 0 is the strict
    rule (a tie with the argmax passes). When sampling no alpha is lossless: a correction from p, rather than from what
    p has over q, returns to tokens that the draft proposed too often already. That follows from the definition as it
    reached us; the original article solves for alpha under a bound on KL and has a correction of its own.

    Maths:
      $$ P(\text{accept } d) = \min\left(1, \frac{p(d)}{(1 - \alpha) q(d)}\right), \quad \text{correction} \sim p $$

    Source: mentored decoding (Tran-Thien, 2023), second-hand.

    Attributes:
      alpha: from 0 to below 1; the larger, the more is accepted.
    """

    alpha: float = number(minimum=0.0, maximum=1.0, open_above=True, relaxes="up")

    spec_name = "mentored"
    source = "mentored decoding, Tran-Thien 2023 (second-hand)"
    ours = "its greedy form"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        return _lenient(inputs, odds, 1.0 - self.alpha)

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        return p


def _lenient(inputs: VerifyInputs, odds: Odds, factor: float | jax.Array) -> jax.Array:
    count = inputs.draft_tokens.shape[0]
    log_factor = jnp.log(jnp.asarray(factor, jnp.float32))

    def greedy():
        logits = inputs.raw_target_logits[:count]
        chosen = jnp.take_along_axis(logits, inputs.draft_tokens[:, None], axis=-1)[:, 0]
        return (chosen - jnp.max(logits, axis=-1) >= log_factor).astype(jnp.float32)

    def sampled():
        return jnp.minimum(1.0, odds.ratio() / factor)

    return jax.lax.cond(inputs.greedy, greedy, sampled)

"""Speculative sampling with a uniform draw that is eased where the target is unsure."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import Normaliser, entropy
from kljudge_jax.verification.parameters import number, probability
from kljudge_jax.verification.rule import Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class EntropyVerify(TokenRule):
    r"""Accept d where p(d) / q(d) passes a scaled-down uniform draw: by 0.95, and by more where the target is unsure.

    That is lenience with a factor min(threshold, exp(-alpha H(p))); the correction is the strict rule's. H(p) is of the
    raw logits at temperature 1, in nats. Greedy: the strict rule, as in the source. A threshold of 1 with an alpha of 0
    is the strict rule throughout.

    Maths:
      $$ P(\text{accept } d) = \min\left(1, \frac{p(d)}{q(d) \min\left(\theta, e^{-\alpha H(p)}\right)}\right) $$

    Source: entropy verification of vLLM Ascend (code, merged, with its values). That code accepts at equality, and the
    distribution that it reads H from is given by its caller.

    Attributes:
      threshold: theta, the largest factor, above 0 and up to 1.
      alpha: how fast the factor falls with the entropy.
    """

    threshold: float = number(0.95, minimum=0.0, maximum=1.0, open_below=True, relaxes="down")
    alpha: float = number(0.4, minimum=0.0, relaxes="up")

    spec_name = "entropy_verify"
    source = "vLLM Ascend (code)"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        def sampled():
            unsure = jnp.exp(-self.alpha * entropy(inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]))
            ratio = odds.ratio()
            # A factor that underflows is 0, and no factor lets a token of no probability pass.
            return jnp.where(ratio > 0, jnp.minimum(1.0, ratio / jnp.minimum(self.threshold, unsure)), 0.0)

        return jax.lax.cond(inputs.greedy, odds.strict, sampled)


@register
@dataclasses.dataclass(frozen=True)
class EARS(TokenRule):
    r"""Accept d where p(d) / q(d) passes a uniform draw that is lowered by tolerance (1 - max p).

    A token of no probability under the target never passes; the correction is the strict rule's. max p is of the raw
    logits at temperature 1. Greedy: the strict rule, as in the source. A tolerance of 0 is the strict rule throughout.

    Maths:
      $$ P(\text{accept } d) = \min\left(1, \frac{p(d)}{q(d)} + \beta \left(1 - \max_v p(v)\right)\right) \quad
      \text{where } p(d) > 0 $$

    Source: EARS, arXiv 2512.13194, second-hand, and as proposed for vLLM Ascend in the description of the authors' own
    code: it keeps the lowered draw above 0, and reads max p at the sampling temperature.

    Attributes:
      tolerance: beta, 0 to 1.
    """

    tolerance: float = probability(relaxes="up")

    spec_name = "ears"
    source = "EARS, arXiv 2512.13194 (second-hand)"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        def sampled():
            unsure = 1.0 - Normaliser.of(inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]).top
            ratio = odds.ratio()
            return jnp.where(ratio > 0, jnp.minimum(1.0, ratio + self.tolerance * unsure), 0.0)

        return jax.lax.cond(inputs.greedy, odds.strict, sampled)

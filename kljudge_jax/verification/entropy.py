"""Rules that let a mismatch pass by how unsure a model is."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import entropy, is_argmax
from kljudge_jax.verification.parameters import choice, integer, number, probability
from kljudge_jax.verification.rule import ThresholdRule, register


@register
@dataclasses.dataclass(frozen=True)
class EntropyThreshold(ThresholdRule):
    r"""Accept what the strict rule accepts, and a mismatch where the target is unsure (or, by choice, the draft sure).

    model "target": H(p) > threshold; "draft": H(q) < threshold; nats, raw logits at temperature 1. A target's threshold
    of the vocabulary's ln V, or a draft's of 0, is the strict rule.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor H(p) > \tau, \quad H(p) = -\sum_v p(v) \ln p(v) $$

    Source: a baseline of ours: the two halves of what KLJudge reads, one at a time.

    Attributes:
      threshold: in nats.
      model: whose entropy.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    threshold: float = number()
    model: str = choice("target", "draft", default="target")
    confidence: float = probability(1.0)

    spec_name = "entropy"
    source = "a baseline of ours"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        if self.model == "draft":
            return entropy(inputs.raw_draft_logits) < self.threshold
        return entropy(inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]) > self.threshold


@register
@dataclasses.dataclass(frozen=True)
class FLy(ThresholdRule):
    r"""Accept what the strict rule accepts, and a lone mismatch where the target is unsure.

    A mismatch passes iff H(p) / ln V > threshold and none of the next `window` draft tokens is a mismatch, a mismatch
    being a token that is not the target's argmax: a target that goes along with what follows has taken the token for
    another wording. The window is cut short at the draft's end, so that a last token passes on entropy alone. A
    threshold of 1 is the strict rule.

    Maths:
      $$ \text{accept } d_i \iff \text{strict}(d_i) \lor
      \left(\frac{H(p_i)}{\ln V} > \tau \land d_j = \operatorname{argmax} p_j \text{ for } i < j \le i + w\right) $$

    Source: FLy, arXiv 2511.22972 (second-hand, and its released code). That code differs: its entropy is that of the
    three best tokens in nats, its window of 6 counts the mismatch itself, and the last 6 tokens of a draft never pass.
    The form when sampling (the strict rule's draw and correction) is ours.

    Attributes:
      threshold: of the entropy as a share of its largest value, ln V.
      window: how many draft tokens have to match after the mismatch.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    threshold: float = number(0.3, relaxes="down")
    window: int = integer(6, minimum=0)
    confidence: float = probability(1.0)

    spec_name = "fly"
    source = "FLy, arXiv 2511.22972 (second-hand)"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        count = inputs.draft_tokens.shape[0]
        logits = inputs.raw_target_logits[:count]
        position = jnp.arange(count)
        mismatch = ~is_argmax(logits, inputs.draft_tokens) & (position < inputs.draft_count)
        ahead = position[None, :] - position[:, None]
        followed = jnp.any(mismatch[None] & (ahead > 0) & (ahead <= self.window), axis=-1)
        return ~followed & (entropy(logits) / math.log(logits.shape[-1]) > self.threshold)

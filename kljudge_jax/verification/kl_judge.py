"""The headline rule: a judge that needs no training."""

from __future__ import annotations

import dataclasses

import jax

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import kl_on_support
from kljudge_jax.verification.parameters import first_tokens, number, probability
from kljudge_jax.verification.rule import ThresholdRule, register


@register
@dataclasses.dataclass(frozen=True)
class KLJudge(ThresholdRule):
    r"""Accept what the strict rule accepts, and a mismatch where the target is unsure and agrees with the draft.

    accept = strict or (max p <= confidence and KL(p || q) < threshold), p and q the softmax of the raw logits over the
    full vocabulary. The token d itself is not looked at. A threshold of -1 (or 0) is the strict rule; so is a
    confidence of 0.

    The first token of an answer is the strict rule's, as in the authors' code, which lets the target write it before
    anything is drafted; with `first=0` it is judged like any other. Where nobody says how far an answer has come
    (`VerifyInputs.position` is None), no token is the first.

    Greedy: strict is d = argmax p, as published. Sampling, which the paper leaves open: strict is speculative
    sampling's draw, with its correction, on the processed logits.

    A draft that knows a part S of the vocabulary alone (a ranked head, an EAGLE-3 head) is compared on S, in a form of
    ours: with r = 1 - p(S) and p_S = p / (1 - r), KL(p_S || q) - ln(1 - r) takes KL's place, and where r is above 1/2
    the strict rule decides. It is KL to the bit where S is everything. A draft without a distribution (prompt lookup)
    is refused.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor \left(\max_v p(v) \le c \land \text{KL}(p \| q) < \tau\right) $$

      $$ \text{KL}(p \| q) = \sum_v p(v) \ln \frac{p(v)}{q(v)} $$

      $$ \text{on } S: \quad \text{KL}(p_S \| q) - \ln(1 - r), \quad r = 1 - \sum_{v \in S} p(v),
      \quad p_S(v) = \frac{p(v)}{1 - r} $$

    Source: JuDi, arXiv 2601.04766, paper and code. Published thresholds: 0.1 to 1.4, about 0.4 to 0.5 for word
    problems; the confidence is its constant 0.9.

    Attributes:
      threshold: tau, in nats; KL has to be below it.
      confidence: the largest top probability of the target at which a mismatch may pass; 1.0 is no mask.
      first: so many first tokens of an answer the strict rule decides alone.
    """

    threshold: float = number(relaxes="up")
    confidence: float = probability(0.9)
    first: int = first_tokens()

    spec_name = "kl"
    source = "JuDi, arXiv 2601.04766 (paper and code); its forms when sampling and on a part of the vocabulary are ours"
    ours = "its form when sampling, and on a draft that knows a part of the vocabulary"
    earlier = ("first=0",)
    compares_drafts = True

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        return kl_on_support(inputs.raw_target_logits, inputs.raw_draft_logits) < self.threshold

"""Fuzzy speculative decoding: keep the draft while the two models agree, whatever it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import (
    js_divergence,
    kl_divergence,
    kl_on_support,
    total_variation,
)
from kljudge_jax.verification.parameters import choice, number, probability
from kljudge_jax.verification.rule import ThresholdRule, register

_DIVERGENCES = {
    "js": js_divergence,
    "kl_target_draft": kl_on_support,
    "kl_draft_target": lambda target, draft: kl_divergence(draft, target),
    "tv": total_variation,
}


@register
@dataclasses.dataclass(frozen=True)
class DivergenceThreshold(ThresholdRule):
    r"""Accept d iff the divergence of target and draft is at most the threshold; d itself is not looked at.

    Divergences read the raw logits at temperature 1. A rejected token is replaced by one drawn from p; there is no
    escape for a token that matches. A threshold of -1 rejects everything and so keeps the target's distribution.
    "kl_target_draft" of a draft over a part of the vocabulary is `KLJudge`'s, and a draft without a distribution
    (prompt lookup) is refused with it; the others are finite for any draft that the target does not exclude.

    Maths:
      $$ \text{accept } d \iff D(p, q) \le \tau $$

      $$ \text{JS}(p, q) = \frac{1}{2} \text{KL}(p \| m) + \frac{1}{2} \text{KL}(q \| m), \quad m = \frac{p + q}{2} $$

      $$ \text{TV}(p, q) = \frac{1}{2} \sum_v |p(v) - q(v)| $$

    Source: FSD, arXiv 2502.20704 (paper and code). Jensen-Shannon is the textbook one: the authors' code swaps the
    arguments of its two KL terms. The mask by `confidence` is ours.

    Attributes:
      divergence: "js" (0 to ln 2), "kl_target_draft" = KL(p || q), "kl_draft_target" = KL(q || p), both in nats, or
        "tv" (0 to 1).
      threshold: the largest divergence that passes.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    divergence: str = choice(*_DIVERGENCES)
    threshold: float = number(relaxes="up")
    confidence: float = probability(1.0)

    spec_name = "fuzzy"
    source = "FSD, arXiv 2502.20704 (paper and code)"
    keeps_strict = False

    @property
    def compares_drafts(self) -> bool:  # type: ignore[override]  # known with the divergence, not with the class
        return self.divergence == "kl_target_draft"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        return _divergence(self.divergence, inputs) <= self.threshold


@register
@dataclasses.dataclass(frozen=True)
class RelaxedFuzzy(ThresholdRule):
    r"""Accept d where the divergence of target and draft is below the threshold; elsewhere the strict rule decides.

    `DivergenceThreshold` with a way out for what the strict rule accepts, and so with the strict rule's correction.
    The divergences are the same, of the raw logits at temperature 1. A threshold of 0 is the strict rule. With
    "kl_target_draft" and a confidence of 0.9 it is `KLJudge`.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor D(p, q) < \tau $$

    Source: a relaxed form of FSD (arXiv 2502.20704), by Jensen-Shannon, in comparisons of relaxed rules; second-hand.
    The other divergences and the mask by `confidence` are ours.

    Attributes:
      threshold: the divergence that is too large already.
      divergence: as in `DivergenceThreshold`.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    threshold: float = number(relaxes="up")
    divergence: str = choice(*_DIVERGENCES, default="js")
    confidence: float = probability(1.0)

    spec_name = "rfuzzy"
    source = "R-fuzzy, after FSD, arXiv 2502.20704 (second-hand)"
    source_has: ClassVar[Mapping[str, tuple[Any, ...]]] = {"divergence": ("js",)}

    @property
    def compares_drafts(self) -> bool:  # type: ignore[override]  # known with the divergence, not with the class
        return self.divergence == "kl_target_draft"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        return _divergence(self.divergence, inputs) < self.threshold


def _divergence(name: str, inputs: VerifyInputs) -> jax.Array:
    """Of target and draft at each draft token, f32 `[K]`."""
    return _DIVERGENCES[name](inputs.raw_target_logits[: inputs.draft_tokens.shape[0]], inputs.raw_draft_logits)

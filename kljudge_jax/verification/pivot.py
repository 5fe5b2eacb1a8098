"""The pivot-aware rule: a rejected token passes where a head does not expect it to turn the answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import token_probability
from kljudge_jax.verification.head import Head
from kljudge_jax.verification.linear_judge import STORED_HEAD
from kljudge_jax.verification.parameters import number, probability
from kljudge_jax.verification.rule import ThresholdRule, register


@register
@dataclasses.dataclass(frozen=True, eq=False)
class PivotAware(ThresholdRule):
    r"""Accept what the strict rule accepts, and a rejected token the target does not rule out, if its score is low.

    accept = strict or (max p <= confidence and score < threshold and p(d) >= floor), p the softmax of the raw logits.
    The score is P(pivot | x), usually of a small MLP on the target's state after the token, p(d) and H(p) (set-up
    "pivot"). Where a feature is no finite number the strict rule decides.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor
      \left(\max_v p(v) \le c \land s(x) < \sigma \land p(d) \ge f\right) $$

    Source: arXiv 2511.00351 (second-hand). There a token below the floor is "always rejected"; here it is never passed
    by the score, and the strict rule keeps its say, so that a threshold of 0 is lossless.

    Attributes:
      head: what `judges.training` fitted, on labels of `judges.labels.pivot_score`.
      threshold: sigma; the score has to be below it.
      floor: the least p(d) of a token that may pass.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    head: Head = dataclasses.field(metadata=STORED_HEAD)
    threshold: float = number(relaxes="up")
    floor: float = probability(1e-4)
    confidence: float = probability(1.0)

    spec_name = "pivot"
    source = "Pivot-aware decoding, arXiv 2511.00351 (second-hand)"
    ours = "that the strict rule keeps its say below the floor"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # known with the head, not with the class
        return self.head.needs

    @property
    def compares_drafts(self) -> bool:  # type: ignore[override]  # known with the head, not with the class
        return self.head.setup == "logits"

    def check_pair(self, pair: Any) -> None:
        """Raises `InputError` if the head was trained for another pair."""
        self.head.check_pair(pair)

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        tokens = jnp.clip(inputs.draft_tokens, 0, logits.shape[-1] - 1)
        return (self.head.important(inputs) < self.threshold) & (token_probability(logits, tokens) >= self.floor)

"""Rules that look at where the draft token stands among the target's tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError
from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import Normaliser, excess, token_probability, token_rank
from kljudge_jax.verification.parameters import choice, integer, number, probability
from kljudge_jax.verification.rule import Odds, Rule, ThresholdRule, register


@register
@dataclasses.dataclass(frozen=True)
class TopKAcceptance(ThresholdRule):
    r"""Accept d iff it is among the target's k most probable tokens, ties by the lower id.

    When sampling, a rejected token is replaced by one drawn from p. Greedy, k = 1 is the strict rule.

    Maths:
      $$ \text{accept } d \iff |\{v : p(v) > p(d)\}| < k $$

    Source: a baseline in most papers on relaxed verification; one released form compares with the position after d.

    Attributes:
      k: how many of the target's tokens pass.
      confidence: the largest top probability of the target at which the rule is asked; above it the strict rule
        decides. 1.0 is always.
    """

    k: int = integer(minimum=1, relaxes="up")
    confidence: float = probability(1.0)

    spec_name = "topk"
    source = "a common baseline (definition)"
    ours = "its form when sampling"
    keeps_strict = False

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        count = inputs.draft_tokens.shape[0]
        return token_rank(inputs.raw_target_logits[:count], inputs.draft_tokens) < self.k


class _ThinkingRule(ThresholdRule):
    """A rule that has a field `section`: "thinking", and outside a thinking block the strict rule decides, or "all"."""

    keeps_strict = False
    section: Any  # a field of the concrete rule

    @classmethod
    def form_of_ours(cls, greedy: bool, values: Mapping[str, Any]) -> str:
        if greedy:
            return "" if values.get("section") == "thinking" else "section=all"
        return "its form when sampling"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # known with the section, not with the class
        return frozenset({"section"}) if self.section == "thinking" else frozenset()

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        tested = super().acceptance(inputs, odds)
        if self.section == "all":
            return tested
        return jnp.where(_thinking(self, inputs)[: tested.shape[0]], tested, odds.strict())

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        tested = super().residual(inputs, odds, num_accepted, p, q)
        if self.section == "all":
            return tested
        return jnp.where(_thinking(self, inputs)[num_accepted], tested, excess(p, q))


def _thinking(rule: Rule, inputs: VerifyInputs) -> jax.Array:
    """Whether each draft token stands in a thinking block: bool `[K + 1]`."""
    if inputs.section is None:
        raise InputError(
            f"{type(rule).__name__} relaxes inside thinking blocks, and no ids of one are given: give section_ids, "
            "the tokens that begin and end one, or section=all"
        )
    return inputs.section == 1


@register
@dataclasses.dataclass(frozen=True)
class RelaxedThinking(_ThinkingRule):
    r"""Accept d iff it is among the target's k best and p(d) >= max p - delta.

    When sampling, a rejected token is replaced by one drawn from p. Greedy, k = 1 or a delta of 0 is the strict rule
    (a delta of 0 lets a token through whose probability is the argmax's in float32). The source applies it inside a
    model's thinking block and decodes strictly after it: that is section "thinking", which needs the block's ids
    (`section_ids`). Section "all" holds throughout, for models and tasks without such blocks.

    Maths:
      $$ \text{accept } d \iff |\{v : p(v) > p(d)\}| < k \land p(d) \ge \max_v p(v) - \delta $$

    Source: TensorRT-LLM's relaxed acceptance (code), with its values for DeepSeek-R1.

    Attributes:
      k: how many of the target's tokens can pass.
      delta: how much less probable than the target's best they may be.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
      section: "all", or "thinking": outside a thinking block the strict rule decides.
    """

    k: int = integer(10, minimum=1, relaxes="up")
    delta: float = probability(0.6, relaxes="up")
    confidence: float = probability(1.0)
    section: str = choice("all", "thinking", default="all")

    spec_name = "thinking"
    source = "TensorRT-LLM relaxed acceptance (code)"
    ours = "its form when sampling, and section=all when greedy"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        near = Normaliser.of(logits).top - token_probability(logits, inputs.draft_tokens) <= self.delta
        return near & (token_rank(logits, inputs.draft_tokens) < self.k)


@register
@dataclasses.dataclass(frozen=True)
class RelaxedThinkingRatio(_ThinkingRule):
    r"""Accept d iff it is among the target's k best and p(d) >= ratio max p.

    `RelaxedThinking` with a share of the best probability in place of a distance from it, which scales with how sure
    the target is. When sampling, a form of ours, a rejected token is replaced by one drawn from p; the source decodes
    strictly then. Greedy, k = 1 or a ratio of 1 is the strict rule (a ratio of 1 lets a tie pass). Sections as there.

    Maths:
      $$ \text{accept } d \iff |\{v : p(v) > p(d)\}| < k \land p(d) \ge r \max_v p(v) $$

    Source: relaxed acceptance as proposed for vLLM (descriptions of its pull requests 22238, 43184 and 45229, the last
    of which has these values); the code was not merged.

    Attributes:
      k: how many of the target's tokens can pass.
      ratio: r, the least share of the best probability, 0 to 1.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
      section: "all", or "thinking": outside a thinking block the strict rule decides.
    """

    k: int = integer(3, minimum=1, relaxes="up")
    ratio: float = probability(0.5, relaxes="down")
    confidence: float = probability(1.0)
    section: str = choice("all", "thinking", default="all")

    spec_name = "thinking_ratio"
    source = "vLLM's proposed relaxed acceptance (second-hand)"
    ours = "its form when sampling, and section=all when greedy"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        chosen = jnp.take_along_axis(logits, inputs.draft_tokens[:, None], axis=-1)[:, 0]
        near = chosen - jnp.max(logits, axis=-1) >= jnp.log(jnp.asarray(self.ratio, jnp.float32))
        return near & (token_rank(logits, inputs.draft_tokens) < self.k)


@register
@dataclasses.dataclass(frozen=True)
class MarginAcceptance(ThresholdRule):
    r"""MARS: accept what the strict rule accepts, and the target's runner-up where it is nearly as good.

    accept = strict or (d is the target's second best and z(d) / max z > threshold), z the target's raw logits. The
    ratio is the paper's: it changes when a constant is added to all logits, and it says nothing where the best logit is
    not above 0, so there the strict rule decides. A threshold of 1 is the strict rule.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor \left(d = z_{(2)} \land \frac{z(d)}{\max_v z(v)} > \theta\right) $$

    Source: MARS, arXiv 2601.15498, which publishes 0.9; read in summaries that agree, not in its code. The form when
    sampling (the strict rule's draw and correction) is ours.

    Attributes:
      threshold: the ratio of the two logits that has to be exceeded.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
    """

    threshold: float = number(0.9, relaxes="down")
    confidence: float = probability(1.0)

    spec_name = "margin"
    source = "MARS, arXiv 2601.15498 (second-hand)"
    ours = "its form when sampling"

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        chosen = jnp.take_along_axis(logits, inputs.draft_tokens[:, None], axis=-1)[:, 0]
        best = jnp.max(logits, axis=-1)
        runner_up = token_rank(logits, inputs.draft_tokens) == 1
        # A product and not a quotient, strict and exact at a tie when the threshold is 1.
        return runner_up & (best > 0) & (chosen > self.threshold * best)

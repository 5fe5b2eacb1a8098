"""Rules that let a mismatch pass by how unsure a model is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import Normaliser, entropy, is_argmax, token_probability
from kljudge_jax.verification.parameters import choice, integer, number, probability
from kljudge_jax.verification.rule import ALL_OURS, Odds, Rule, ThresholdRule, register


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
    ours = ALL_OURS

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        if self.model == "draft":
            return entropy(inputs.raw_draft_logits) < self.threshold
        return entropy(inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]) > self.threshold


@register
@dataclasses.dataclass(frozen=True)
class FLy(Rule):
    r"""Accept what the strict rule accepts, and a lone mismatch where the target is unsure.

    A token that the strict rule rejects passes iff the entropy of the target's three largest probabilities, not
    renormalised, is at least the threshold, p(d) > 0, and the strict rule, on its own draws, accepts each of the next w
    tokens, all of which the draft has. w = min(window, K - 1), K the draft length, so that the last tokens of a draft
    never pass. A target that goes along with what follows has taken the token for another wording. A threshold above
    3 / e = 1.104 is the strict rule: the three terms are no larger. Corrections are the strict rule's.

    entropy="full" is the paper's gate in a form of ours: H(p) / ln V > threshold over the whole vocabulary, and none of
    the next `window` tokens is other than the target's argmax, the window cut short at the draft's end, so that a last
    token passes on entropy alone. A threshold of 1 is the strict rule then. At V = 128,256 the default asks for 3.5
    nats, which is close to the strict rule.

    Maths:
      $$ \text{accept } d_i \iff s_i \lor \left(-\sum_{v \in \text{top } 3} p_i(v) \ln p_i(v) \ge \tau
      \land p_i(d_i) > 0 \land i + w < n \land s_{i + 1} \land \dots \land s_{i + w}\right) $$

    with $s_i$ the strict rule's decision on token $i$ of a draft of $n$.

    Source: FLy, arXiv 2511.22972, as AMD proposes it for vLLM (`fly.py`, code), which reads p after temperature and
    truncation; here it is that of the raw logits at temperature 1, as in every rule. The paper's gate is second-hand.

    Attributes:
      threshold: in nats; of entropy="full", of the entropy as a share of its largest value, ln V.
      window: how many draft tokens have to be accepted after the mismatch.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
      entropy: "top3" or "full".
    """

    threshold: float = number(0.3, relaxes="down")
    window: int = integer(6, minimum=0)
    confidence: float = probability(1.0)
    entropy: str = choice("top3", "full", default="top3")

    spec_name = "fly"
    source = "FLy, arXiv 2511.22972, as in vLLM (code)"
    ours = "its form when sampling with entropy=full"
    earlier = ("entropy=full",)
    reads_length = True
    first = 0

    @classmethod
    def form_of_ours(cls, greedy: bool, values: Mapping[str, Any]) -> str:
        return cls.ours if values.get("entropy") == "full" and not greedy else ""

    def accept(self, uniforms: jax.Array, inputs: VerifyInputs, odds: Odds) -> tuple[jax.Array, jax.Array]:
        strict = uniforms < odds.strict()
        followed = jnp.all(strict[None] | ~self._window(inputs), axis=-1)
        decided = strict | (self._gate(inputs) & followed)
        kept = jnp.cumprod(_real(inputs) & decided, dtype=jnp.int32)
        return jnp.sum(kept), (kept == 1) & ~strict

    def acceptance_distribution(self, inputs: VerifyInputs) -> jax.Array:
        count = inputs.draft_tokens.shape[0]
        if not count:
            return jnp.ones((1,))
        strict = jnp.where(_real(inputs), Odds.of(inputs).strict(), 0.0)
        window = self._window(inputs)
        # That the strict rule accepts the whole window of a token, once it has rejected the token.
        passes = jnp.where(self._gate(inputs), jnp.prod(jnp.where(window, strict[None], 1.0), axis=-1), 0.0)
        beyond = jnp.arange(count) + 1 + jnp.sum(window, axis=-1, dtype=jnp.int32)

        def step(i, carry):
            # `open[i]`: all before i is accepted, and nothing of what comes is known.
            open_, ends = carry
            relaxed = (1.0 - strict[i]) * passes[i]
            ends = ends.at[i].set(open_[i] * ((1.0 - strict[i]) - relaxed))
            return open_.at[i + 1].add(open_[i] * strict[i]).at[beyond[i]].add(open_[i] * relaxed), ends

        begin = jnp.zeros((count + 1,)).at[0].set(1.0)
        open_, ends = jax.lax.fori_loop(0, count, step, (begin, jnp.zeros((count + 1,))))
        return ends.at[count].set(open_[count])

    def _gate(self, inputs: VerifyInputs) -> jax.Array:
        """Which tokens may pass though the strict rule rejects them, as far as it does not hang on its draws."""
        count = inputs.draft_tokens.shape[0]
        if not count:
            return jnp.zeros((0,), bool)
        logits = inputs.raw_target_logits[:count]
        place = jnp.arange(count)
        if self.entropy == "full":
            mismatch = ~is_argmax(logits, inputs.draft_tokens) & (place < inputs.draft_count)
            followed = jnp.any(mismatch[None] & self._ahead(count, self.window), axis=-1)
            gate = ~followed & (entropy(logits) / math.log(logits.shape[-1]) > self.threshold)
        else:
            gate = _top_entropy(logits) >= self.threshold
            gate &= token_probability(logits, jnp.clip(inputs.draft_tokens, 0, logits.shape[-1] - 1)) > 0
            gate &= place + self._length(count) < inputs.draft_count
        gate &= (Normaliser.of(logits).top <= self.confidence) & _real(inputs)
        first = self.among_first(inputs)
        return gate if first is None else gate & ~first[:-1]

    def _window(self, inputs: VerifyInputs) -> jax.Array:
        """Which tokens the strict rule has to accept for each to pass, bool `[K, K]`; "full" does not ask it."""
        count = inputs.draft_tokens.shape[0]
        return self._ahead(count, self._length(count) if self.entropy == "top3" else 0)

    def _length(self, count: int) -> jax.Array:
        return jnp.minimum(jnp.asarray(self.window).astype(jnp.int32), max(count - 1, 0))

    def _ahead(self, count: int, window) -> jax.Array:
        ahead = jnp.arange(count)[None, :] - jnp.arange(count)[:, None]
        return (ahead > 0) & (ahead <= window)


def _real(inputs: VerifyInputs) -> jax.Array:
    return jnp.arange(inputs.draft_tokens.shape[0]) < inputs.draft_count


def _top_entropy(logits: jax.Array) -> jax.Array:
    """-sum p ln p over the three largest probabilities, f32 `[K, V]` to `[K]`, in nats."""
    best = jax.lax.top_k(logits, min(3, logits.shape[-1]))[0]
    log_p = Normaliser.of(logits).log_probability(best)
    return -jnp.sum(jnp.where(log_p == -jnp.inf, 0.0, jnp.exp(log_p) * log_p), axis=-1)

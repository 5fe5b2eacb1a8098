"""Lossless verification of the draft as a whole."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import excess, probabilities
from kljudge_jax.verification.rule import Odds, Rule, register

# Far above what logarithms of float32 probabilities differ by, and finite, so that sums of it are numbers.
_LARGEST = 1e30


@register
@dataclasses.dataclass(frozen=True)
class BlockVerification(Rule):
    r"""Lossless: keep the longest part of the draft whose own draw passes; never shorter on average than `exact`.

    Each length n from 1 to draft_count passes with probability h_n, below (0/0 is 1), and that of the whole draft
    a_draft_count. The accepted length is the largest n that passes, 0 if none does. The correction is
    norm(max(a_n p_n - q_n, 0)), and p_n where that is empty.

    The distribution of the tokens is the target's, though not that of the accepted length, so `relaxed` is False
    throughout. Greedy: accept iff d is the target's argmax.

    Maths:
      $$ a_0 = 1, \quad a_{i+1} = \min\left(1, a_i \frac{p_i(d_i)}{q_i(d_i)}\right) $$

      $$ S_n = \sum_v \max(a_n p_n(v) - q_n(v), 0), \quad h_n = \frac{S_n}{S_n + 1 - a_n} $$

    Source: Sun et al., arXiv 2403.10444 (paper and code).
    """

    spec_name = "block"
    source = "arXiv 2403.10444 (paper and code)"
    lossless = True

    def acceptance_distribution(self, inputs: VerifyInputs) -> jax.Array:
        passes = jnp.append(1.0, _pass_probability(inputs, Odds.of(inputs)))
        none_longer = jnp.cumprod(1.0 - passes[::-1])[::-1]
        return passes * jnp.append(none_longer[1:], 1.0)

    def accept(self, uniforms: jax.Array, inputs: VerifyInputs, odds: Odds) -> tuple[jax.Array, jax.Array]:
        lengths = jnp.arange(1, uniforms.shape[0] + 1, dtype=jnp.int32)
        passed = uniforms < _pass_probability(inputs, odds)
        return jnp.max(jnp.where(passed, lengths, 0), initial=0), jnp.zeros_like(passed)

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        return excess(jnp.exp(_log_prefix_weights(odds)[num_accepted]) * p, q)


def _log_prefix_weights(odds: Odds) -> jax.Array:
    """ln a_0 to ln a_K, f32 `[K + 1]`: as logarithms, for a prefix of many rare tokens is not one of no probability."""

    def step(carry, log_ratio):
        # The sum's rounding is summed beside it: on the way back from -3000 float32 would lose a hundredth of a weight.
        total, lost = carry
        found = total + log_ratio
        added = found - total
        lost += (total - (found - added)) + (log_ratio - added)
        full = found + lost >= 0
        # A prefix that the target cannot write stays at 0, even before a token that the draft could not have drawn.
        none = (total == -jnp.inf) | (log_ratio == -jnp.inf)
        total = jnp.where(none, -jnp.inf, jnp.where(full, 0.0, found))
        lost = jnp.where(none | full, 0.0, lost)
        return (total, lost), total + lost

    # An infinite ratio, of a token that the draft could not have drawn, is as good as any that outweighs the prefix.
    log_ratio = jnp.where(
        odds.log_target == -jnp.inf, -jnp.inf, jnp.minimum(odds.log_target - odds.log_draft, _LARGEST)
    )
    begin = jnp.zeros_like(log_ratio, shape=())
    # Unrolled, it is one small fused kernel; a loop on the device would cost more than its arithmetic.
    _, weights = jax.lax.scan(step, (begin, begin), log_ratio, unroll=max(1, log_ratio.shape[0]))
    return jnp.append(0.0, weights)


def _pass_probability(inputs: VerifyInputs, odds: Odds) -> jax.Array:
    """h_1 to h_K, f32 `[K]`: 0 past `draft_count`."""
    count = inputs.draft_tokens.shape[0]
    log_weights = _log_prefix_weights(odds)
    weights = jnp.exp(log_weights)

    def sampled():
        # Row n is scored with the weight of the n tokens before it; row 0 has no draw of its own.
        weight = weights[1:count]
        gain = jnp.sum(
            excess(
                weight[:, None] * probabilities(inputs.target_logits[1:count]), probabilities(inputs.draft_logits[1:])
            ),
            axis=-1,
        )
        # In this order: a small gain would lose its digits in a sum with 1, and h could pass 1.
        kept = gain - jnp.expm1(log_weights[1:count])
        return jnp.append(jnp.where(kept > 0, gain / kept, 1.0), weights[count:])

    lengths = jnp.arange(1, count + 1)
    passes = weights[1:] if count < 2 else jax.lax.cond(inputs.greedy, lambda: weights[1:], sampled)
    passes = jnp.where(lengths == inputs.draft_count, weights[1:], passes)
    return jnp.where(lengths <= inputs.draft_count, passes, 0.0)

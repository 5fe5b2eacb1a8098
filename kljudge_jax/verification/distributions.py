"""Numbers read off logits: normalisers, divergences, residuals. Float32, natural logarithms, zero where p is zero."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Normaliser(NamedTuple):
    """What turns logits `[..., V]` into log-probabilities: `logit - peak - log(total)`; both f32 `[..., 1]`.

    The peak stays apart from the total's logarithm: their sum would lose the digits of logits that are large.
    """

    peak: jax.Array
    total: jax.Array

    @classmethod
    def of(cls, logits: jax.Array) -> Normaliser:
        peak = jnp.max(logits, axis=-1, keepdims=True)
        return cls(peak, jnp.sum(jnp.exp(logits - peak), axis=-1, keepdims=True))

    def log_probability(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of some of the logits `[..., n]`."""
        return logits - self.peak - jnp.log(self.total)

    @property
    def top(self) -> jax.Array:
        """The largest probability, `[...]`."""
        return 1.0 / self.total[..., 0]


def token_log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of one token a row: logits f32 `[K, V]`, tokens int32 `[K]` to f32 `[K]`."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    return Normaliser.of(logits).log_probability(chosen)[:, 0]


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(p || q) = sum_v p(v) (log p(v) - log q(v)), f32 `[..., V]` twice to `[...]`, in nats.

    A token that p excludes (a logit of -inf) contributes 0; one that only q excludes makes it infinite.
    """
    log_p = Normaliser.of(p_logits).log_probability(p_logits)
    log_q = Normaliser.of(q_logits).log_probability(q_logits)
    # Decided on logits, not on probabilities, which underflow: exp(log_p) can be 0 where p is not.
    terms = jnp.where(log_q == -jnp.inf, jnp.inf, jnp.exp(log_p) * (log_p - log_q))
    # Rounding can leave a sum of -1e-8, which a threshold of 0 must not take for a divergence below it.
    return jnp.maximum(jnp.sum(jnp.where(log_p == -jnp.inf, 0.0, terms), axis=-1), 0.0)


def excess(p: jax.Array, q: jax.Array) -> jax.Array:
    """max(p - q, 0): the weights of speculative sampling's correction, `[V]`."""
    return jnp.maximum(p - q, 0.0)

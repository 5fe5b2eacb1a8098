"""Numbers read off logits: normalisers, divergences, residuals. Float32, natural logarithms, zero where p is zero."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# A draft over a part of the vocabulary says nothing of the rest: where the target has more than this there, the two
# have no divergence.
_MOST_OUTSIDE = 0.5


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

    def probability(self, logits: jax.Array) -> jax.Array:
        """Probabilities of some of the logits `[..., n]`: that of the peak is `top` to the last bit."""
        return jnp.exp(logits - self.peak) / self.total

    @property
    def top(self) -> jax.Array:
        """The largest probability, `[...]`."""
        return 1.0 / self.total[..., 0]


def is_distribution(logits: jax.Array) -> jax.Array:
    """Whether logits `[..., V]` define a distribution: no NaN, no +inf, not all -inf. Bool `[...]`.

    By comparisons, which are false for a NaN: XLA's maximum on a CPU may drop one where it is vectorised.
    """
    return jnp.all(logits < jnp.inf, axis=-1) & jnp.any(logits > -jnp.inf, axis=-1)


def probabilities(logits: jax.Array) -> jax.Array:
    """Softmax over the last axis, f32 `[..., V]`."""
    return Normaliser.of(logits).probability(logits)


def token_log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of one token a row: logits f32 `[K, V]`, tokens int32 `[K]` to f32 `[K]`."""
    return Normaliser.of(logits).log_probability(_chosen(logits, tokens))[:, 0]


def token_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Probability of one token a row: logits f32 `[K, V]`, tokens int32 `[K]` to f32 `[K]`."""
    return Normaliser.of(logits).probability(_chosen(logits, tokens))[:, 0]


def argmax(logits: jax.Array) -> jax.Array:
    """The lowest id of the largest logit, f32 `[..., V]` to int32 `[...]`; of the first NaN where there is one.

    What `jnp.argmax` gives, in two plain reductions: for an argmax XLA may send the ids of a whole vocabulary from
    device to device of a mesh, and on a CPU it takes up to twice as long.
    """
    peak = jnp.max(logits, axis=-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.min(jnp.where((logits == peak) | jnp.isnan(logits), ids, logits.shape[-1]), axis=-1)


def sample(key: jax.Array, logits: jax.Array) -> jax.Array:
    """One id int32 `[]` drawn from logits f32 `[V]`: what `jax.random.categorical` draws, by `argmax`."""
    return argmax(logits + jax.random.gumbel(key, logits.shape, logits.dtype))


def is_argmax(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Whether a row's token is its argmax, ties by the lower id: f32 `[K, V]`, int32 `[K]` to bool `[K]`.

    False in a row with a NaN. Plain reductions, which take less time than an argmax.
    """
    peak = jnp.max(logits, axis=-1, keepdims=True)
    # A maximum may drop a NaN, so NaN is asked for by name.
    before = (logits == peak) & (jnp.arange(logits.shape[-1])[None] < tokens[:, None]) | jnp.isnan(logits)
    return (_chosen(logits, tokens) == peak)[:, 0] & ~jnp.any(before, axis=-1)


def token_rank(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """How many tokens come before a row's one, ties by the lower id: f32 `[K, V]`, int32 `[K]` to int32 `[K]`.

    A row with a NaN ranks its token last.
    """
    chosen = _chosen(logits, tokens)
    behind = (logits < chosen) | ((logits == chosen) & (jnp.arange(logits.shape[-1])[None] >= tokens[:, None]))
    return jnp.sum(~behind, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """H(p) = -sum_v p(v) log p(v), f32 `[..., V]` to `[...]`, in nats: from 0 to ln V."""
    log_p = Normaliser.of(logits).log_probability(logits)
    total = -jnp.sum(jnp.where(log_p == -jnp.inf, 0.0, jnp.exp(log_p) * log_p), axis=-1)
    # Rounding must not carry a uniform distribution past a threshold of ln V.
    return jnp.minimum(total, math.log(logits.shape[-1]))


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(p || q) = sum_v p(v) (log p(v) - log q(v)), f32 `[..., V]` twice to `[...]`, in nats.

    A token that p excludes (a logit of -inf) contributes 0; one that only q excludes makes it infinite: see
    `kl_on_support` for a q that excludes some by its make.
    """
    log_p = Normaliser.of(p_logits).log_probability(p_logits)
    log_q = Normaliser.of(q_logits).log_probability(q_logits)
    # Rounding can leave a sum of -1e-8, which a threshold of 0 must not take for a divergence below it.
    return jnp.maximum(jnp.sum(_relative(log_p, log_q), axis=-1), 0.0)


def kl_on_support(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    r"""KL(p || q) for a q over a part S of the vocabulary: what judges read. Shapes as `kl_divergence`, in nats.

    S is where q's logits are not -inf. With r = 1 - p(S), the mass that p has elsewhere, and p_S = p / (1 - r) on S:

      $$ D = \text{KL}(p_S \| q) - \ln(1 - r)
           = \frac{1}{1 - r} \sum_{v \in S} p(v) \ln \frac{p(v)}{q(v)} - 2 \ln(1 - r) $$

    KL on S, and what it takes to keep to S: KL(p_S || p) is -ln(1 - r). Infinite where r is above 1/2, for then q says
    nothing of most of p. To the bit `kl_divergence` where S has all that p has. Rows `[..., K, V]` that p has more than
    q are not looked at.

    Source: ours; nobody has published a KL judge for such drafts.
    """

    def rows(p):
        return p[..., : q_logits.shape[-2], :] if q_logits.ndim > 1 else p

    whole = kl_divergence(rows(p_logits), q_logits)

    def on_support(state):
        pending, found = state
        # Tied to the turn: of a loop's body XLA moves before the loop what is the same in every turn.
        p, q, pending = jax.lax.optimization_barrier((p_logits, q_logits, pending))
        log_p, log_q = (Normaliser.of(logits).log_probability(logits) for logits in (rows(p), q))
        excluded = q == -jnp.inf
        inside = jnp.sum(jnp.where(excluded, 0.0, _relative(log_p, log_q)), axis=-1)
        outside = jnp.sum(jnp.where(excluded, jnp.exp(log_p), 0.0), axis=-1)
        divergence = jnp.maximum(inside / (1.0 - outside) - 2.0 * jnp.log1p(-outside), 0.0)
        divergence = jnp.where(outside > _MOST_OUTSIDE, jnp.inf, divergence)
        return jnp.zeros_like(pending), jnp.where(pending, divergence, found)

    # A loop of one turn at most, which a draft over the whole vocabulary never takes: the sums over S cost a fifth of
    # the rule. Under vmap a conditional would compute both. It is given p as it lies, for a part would be copied first.
    return jax.lax.while_loop(lambda state: jnp.any(state[0]), on_support, (whole == jnp.inf, whole))[1]


def js_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Jensen-Shannon, KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2: 0 to ln 2, shapes as `kl_divergence`."""
    log_p = Normaliser.of(p_logits).log_probability(p_logits)
    log_q = Normaliser.of(q_logits).log_probability(q_logits)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return jnp.maximum(jnp.sum(_relative(log_p, log_m) + _relative(log_q, log_m), axis=-1) / 2, 0.0)


def total_variation(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """sum_v |p(v) - q(v)| / 2, from 0 to 1; shapes as `kl_divergence`."""
    return jnp.sum(jnp.abs(probabilities(p_logits) - probabilities(q_logits)), axis=-1) / 2


def excess(p: jax.Array, q: jax.Array) -> jax.Array:
    """max(p - q, 0): the weights of speculative sampling's correction, `[V]`."""
    return jnp.maximum(p - q, 0.0)


def _chosen(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)


def _relative(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """p (log p - log q), elementwise: 0 where p is 0, infinite where only q is."""
    # Decided on logarithms, not on probabilities, which underflow: exp(log_p) can be 0 where p is not.
    terms = jnp.where(log_q == -jnp.inf, jnp.inf, jnp.exp(log_p) * (log_p - log_q))
    return jnp.where(log_p == -jnp.inf, 0.0, terms)

"""From logits to the distribution that tokens are drawn from: temperature, then top-k, top-p and min-p."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.verification.distributions import argmax, sample

# Below this a float32 quotient of logits can overflow; a draw is greedy long before.
_LOWEST_TEMPERATURE = 1e-6

# Of a bound on logits, how many are found at once: 15 sums over the vocabulary in one exchange, eight times.
_BITS = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Make one with `create`, which checks the numbers.

    Attributes:
      temperature: f32 `[]`; unused when greedy.
      top_k: int32 `[]`, how many of the likeliest tokens stay; 0 is all.
      top_p: f32 `[]`, the least probability mass that stays.
      min_p: f32 `[]`, the least probability of a token that stays, as a share of the likeliest token's; 0 is off.
      greedy: temperature 0. Static: greedy decoding compiles to no sorting and no draws.
      truncated: top-k or top-p is on. Static, since a sort of the vocabulary costs as much as a small layer.
      split: the vocabulary is split over devices, and is not to be sorted: that would gather it on each of them.
      searched: of a split vocabulary, whether it is searched for top-k's bound, and for top-p's. Static, since every
        step of a search is an exchange between the devices.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    greedy: bool = dataclasses.field(metadata={"static": True})
    truncated: bool = dataclasses.field(metadata={"static": True})
    split: bool = dataclasses.field(default=False, metadata={"static": True})
    searched: tuple[bool, bool] = dataclasses.field(default=(True, True), metadata={"static": True})

    @classmethod
    def create(cls, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Sampling:
        """Raises InputError for a temperature or a top_k below 0, a top_p outside (0, 1], or a min_p outside [0, 1].

        Numbers that are traced are not checked. A temperature that is traced samples: greedy is another program.
        """
        traced = [isinstance(x, jax.core.Tracer) for x in (temperature, top_k, top_p, min_p)]
        if any(traced):
            greedy = not traced[0] and temperature == 0
            given = jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p)
            return cls(*given, greedy, not greedy and (any(traced[1:3]) or top_k > 0 or top_p < 1))
        if not _is_number(temperature) or not (temperature == 0 or _LOWEST_TEMPERATURE <= temperature < math.inf):
            raise InputError(f"temperature must be 0 (greedy) or at least {_LOWEST_TEMPERATURE}, got {temperature}")
        if not _is_number(top_k) or not 0 <= top_k < 2**31 or top_k != int(top_k):
            raise InputError(f"top_k must be a whole number from 0 (off) on, got {top_k}")
        if not _is_number(top_p) or not 0 < np.float32(top_p) <= 1:
            raise InputError(f"top_p must be above 0 and at most 1 (off), got {top_p}")
        if not _is_number(min_p) or not 0 <= min_p <= 1:
            raise InputError(f"min_p must be from 0 (off) to 1, got {min_p}")
        greedy = temperature == 0
        # An array made by jax.numpy is a program of its own to compile.
        put = jax.device_put
        return cls(
            put(np.float32(temperature)),
            put(np.int32(top_k)),
            put(np.float32(top_p)),
            put(np.float32(min_p)),
            greedy,
            not greedy and (top_k > 0 or top_p < 1),
        )

    def over_split_vocabulary(self) -> Sampling:
        """The same where the vocabulary is split over devices. The numbers may not be traced."""
        return dataclasses.replace(self, split=True, searched=(bool(self.top_k > 0), bool(self.top_p < 1)))


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def process_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits of the distribution that is sampled, f32 `[..., V]`; tokens cut off hold -inf.

    Raw logits pass through unchanged when greedy. Tokens that tie with the last one kept stay as well.
    """
    if sampling.greedy:
        return logits
    logits = logits / sampling.temperature
    # As a share of the likeliest token, whom no truncation removes: so this may be read before top-k and top-p. "Not
    # below", so that a NaN stays one.
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
    floored = jnp.where(logits < floor, -jnp.inf, logits)
    if not sampling.truncated:
        return floored
    if sampling.split:
        return jnp.where(_stays(logits, sampling), floored, -jnp.inf)
    vocab = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    kept = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, vocab), vocab)
    least = jnp.take(ordered, kept - 1, axis=-1)[..., None]
    ordered = jnp.where(ordered >= least, ordered, -jnp.inf)
    mass = jax.nn.softmax(ordered, axis=-1)
    # A token stays while the mass strictly above it has not reached top_p, so the likeliest one always stays. The
    # comparison with 1 is by hand: rounding lets the sum reach 1 before the last token.
    stays = (jnp.cumsum(mass, axis=-1) - mass < sampling.top_p) | (sampling.top_p >= 1)
    least = jnp.min(jnp.where(stays & (ordered > -jnp.inf), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, floored, -jnp.inf)


def _stays(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Which of logits `[..., V]` top-k and top-p keep, by sums over the vocabulary alone: bool, the same shape.

    Tokens whose float32 is at least some bound stay. Read as integers in the order of the floats, the bound is found
    some bits at a time, of which each costs the devices one exchange: the highest at which still k tokens, or a mass of
    top_p, are not below it.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)  # -0 ties with 0
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits >= sign, ~bits, bits | sign)

    digits = jnp.expand_dims(jnp.arange(1, 1 << _BITS, dtype=jnp.uint32), range(logits.ndim))  # [..., 1, digits]

    def highest(weights, wanted):
        def step(i, bound):
            shift = jnp.uint32(32 - _BITS) - _BITS * i.astype(jnp.uint32)
            higher = bound[..., None] | (digits << shift)
            above = jnp.where(order[..., None] >= higher, weights[..., None], 0)
            enough = jnp.sum(above, axis=-2, keepdims=True) >= wanted
            digit = jnp.sum(jnp.cumprod(enough.astype(jnp.uint32), axis=-1), axis=-1)
            return bound | (digit << shift)

        return jax.lax.fori_loop(0, 32 // _BITS, step, jnp.zeros((*logits.shape[:-1], 1), jnp.uint32))

    stays = jnp.ones_like(order, bool)
    if sampling.searched[0]:
        bound = jnp.where(sampling.top_k > 0, highest(jnp.ones_like(order), sampling.top_k.astype(jnp.uint32)), 0)
        stays = order >= bound
    if sampling.searched[1]:
        mass = jax.nn.softmax(jnp.where(stays, logits, -jnp.inf), axis=-1)
        stays = stays & ((order >= highest(mass, sampling.top_p)) | (sampling.top_p >= 1))
    return stays


def draw(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """One token int32 `[]` from processed logits f32 `[V]`; the lowest id among equals when greedy."""
    if sampling.greedy:
        return argmax(logits)
    return sample(key, logits)

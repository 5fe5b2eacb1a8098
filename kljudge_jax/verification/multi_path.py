"""Greedy multi-path block verification: the most promising of several drafts, verified as a whole."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import Verdict, VerifyInputs
from kljudge_jax.verification.block import BlockVerification
from kljudge_jax.verification.distributions import Normaliser
from kljudge_jax.verification.parameters import Parameter
from kljudge_jax.verification.rule import register

# Log-ratios beyond this are as good as any beyond it: a token is then hardly drawn, or accepted anyway.
_REACH = 16.0

# As many as float32 has digits for.
_STEP_BITS = 22


@register
@dataclasses.dataclass(frozen=True)
class MultiPathBlock(BlockVerification):
    r"""Lossless: draw several drafts a cycle, and verify as a whole the one that the target likes best.

    Of k independent drafts it follows the greatest, token by token: among those that agree so far, the one whose token
    has the largest p / q (its logarithm in steps of 0.002 or less, and of two tokens of one step the larger id). The
    draft so chosen is no draw from q any more, but one from the distribution of the greatest of k, which is known along
    its own path. Block verification (`BlockVerification`) against that is lossless, for it is so for any distribution
    that a draft was drawn from. One draft is block verification. To order the vocabulary costs a sort a draft position.

    More drafts are longer on average where the two models differ much, and shorter where they are close, for choosing
    moves the draft away from a target that it was near: of 2 tokens, 1, 2 and 3 drafts kept 1.16, 1.34 and 1.35 of six
    distant random pairs, and 1.81, 1.71 and 1.52 of six close ones, exactly; `KSequential` 1.13, 1.27, 1.34 and 1.80,
    1.90, 1.94.

    It is given its drafts through `choose`, as `KSequential` is, and like it makes one draft when greedy, or from a
    drafter that draws nothing (prompt lookup). A cycle drafts and scores k times as many tokens.

    Maths:
      $$ \hat q(v) \propto q(v) \sum_{i=0}^{k-1} u(v)^i w(v)^{k-1-i} $$

      $$ w(v) = s + (1 - s) \sum_{v' \prec v} q(v'), \quad u(v) = w(v) + (1 - s) q(v), \quad
      s = P(\text{draft} \prec \text{prefix} \mid \text{draft} \preceq \text{prefix}) $$

      $$ a_0 = 1, \quad a_{i+1} = \min\left(1, a_i \frac{p_i(d_i)}{\hat q_i(d_i)}\right) $$

    Source: Thomas and Pal, arXiv 2602.16961 (abstract, and a public copy of the authors' code), checked by enumeration.
    That code orders tokens by min(1, p / q), and ties in more than one way.

    Attributes:
      drafts: k, from 1 on; part of the compiled program.
    """

    drafts: int = dataclasses.field(
        default=2, metadata={"parameter": Parameter(integer=True, minimum=1, maximum=64), "static": True}
    )

    spec_name = "gbv"
    source = "arXiv 2602.16961 (code, proven by enumeration)"
    ours = "when sampling, its order of the drafts"
    lossless = True
    scorer = "several drafts"

    def choose(self, key: jax.Array, inputs: VerifyInputs) -> tuple[Verdict, jax.Array]:
        """Draws a verdict over D drafts of one sequence; consumes `key`.

        Args:
          key: PRNG key.
          inputs: with a leading axis D in every field but `greedy`; the drafts are independent and of one prefix.

        Returns:
          The verdict, and the index int32 `[]` of the draft that it is on.
        """
        greatest, branch = self.greatest(inputs)
        return self(key, greatest), branch

    def greatest(self, inputs: VerifyInputs) -> tuple[VerifyInputs, jax.Array]:
        """The draft that is followed, as inputs of one draft that was drawn from its own distribution, and its index.

        Args:
          inputs: as in `choose`.
        """
        drafts, length = inputs.draft_tokens.shape

        def step(state, i):
            alive, less = state
            node = jnp.argmax(alive)
            order = _Order.of(inputs.target_logits[node, i], inputs.draft_logits[node, i])
            token = order.greatest(inputs.draft_tokens[:, i], alive)
            going = i < inputs.draft_count[node]
            alive &= ~going | (inputs.draft_tokens[:, i] == token)
            return (alive, order.after(less, token)), order.of_greatest(less, drafts)

        logits = inputs.draft_logits[0]
        alive = jnp.ones_like(inputs.draft_count, bool)
        if drafts > 1 and length:
            none = _Less(jnp.zeros_like(logits, shape=()), jnp.ones_like(logits, shape=()))
            (alive, _), logits = jax.lax.scan(step, (alive, none), jnp.arange(length))
        branch = jnp.argmax(alive).astype(jnp.int32)
        one = VerifyInputs(
            draft_tokens=inputs.draft_tokens[branch],
            draft_count=inputs.draft_count[branch],
            draft_logits=logits,
            target_logits=inputs.target_logits[branch],
            raw_draft_logits=inputs.raw_draft_logits[branch],
            raw_target_logits=inputs.raw_target_logits[branch],
            draft_hidden=None,
            target_hidden=None,
            greedy=inputs.greedy,
        )
        return one, branch


class _Less(NamedTuple):
    """Of the drafts that are at most a prefix, the probability of those that are less and of those that begin with it.

    Two numbers and not one and 1 less it, which would lose the digits of a rest that is small; f32 `[]` both.
    """

    less: jax.Array
    equal: jax.Array


class _Order(NamedTuple):
    """The order of the tokens after one prefix.

    Attributes:
      key: uint32 `[V]`, no two alike: log p - log q in steps, and in the lowest bits the id.
      log_q: f32 `[V]`, of the draft.
      below: f32 `[V]`, the probability under q of all lesser tokens.
    """

    key: jax.Array
    log_q: jax.Array
    below: jax.Array

    @classmethod
    def of(cls, target_logits: jax.Array, draft_logits: jax.Array) -> _Order:
        log_p, log_q = (Normaliser.of(x).log_probability(x) for x in (target_logits, draft_logits))
        size = log_q.shape[0]
        # One number to sort and not a pair, which takes XLA ten times as long on a CPU. Any order is lossless, as long
        # as no two tokens tie.
        ids = jax.lax.iota(jnp.uint32, size)
        bits = _id_bits(size)
        steps = 2.0 ** min(32 - bits, _STEP_BITS) - 1
        # Where a token that is never drawn stands matters to none.
        gain = jnp.where(log_q > -jnp.inf, log_p - log_q, -_REACH)
        level = jnp.round((jnp.clip(gain, -_REACH, _REACH) / (2 * _REACH) + 0.5) * steps)
        key = jnp.left_shift(level.astype(jnp.uint32), jnp.uint32(bits)) | ids

        below = jax.lax.platform_dependent(key, jnp.exp(log_q), tpu=_below_by_sorts, default=_below_by_scatter)
        return cls(key, log_q, below)

    def greatest(self, tokens: jax.Array, alive: jax.Array) -> jax.Array:
        """The greatest of tokens int32 `[D]` among those that are `alive`, bool `[D]`: int32 `[]`."""
        keys = jnp.where(alive, jnp.take(self.key, tokens, mode="clip"), jnp.uint32(0))
        return _ids(jnp.max(keys), self.key.shape[0])

    def of_greatest(self, prefix: _Less, drafts: int) -> jax.Array:
        """Logits `[V]` of the next token of the greatest of so many drafts, given that it begins with the prefix."""
        less = prefix.less + prefix.equal * self.below
        at_most = less + prefix.equal * jnp.exp(self.log_q)
        terms = power = jnp.ones_like(less)
        for _ in range(drafts - 1):
            power = power * at_most
            terms = terms * less + power
        return self.log_q + jnp.log(terms)

    def after(self, prefix: _Less, token: jax.Array) -> _Less:
        """The same of the prefix with the token behind it."""
        less = prefix.less + prefix.equal * self.below[token]
        equal = prefix.equal * jnp.exp(self.log_q[token])
        total = less + equal
        return _Less(
            *(jnp.where(total > 0, each / total, given) for each, given in zip((less, equal), prefix, strict=True))
        )


def _id_bits(size: int) -> int:
    """How many bits hold the ids of so many tokens."""
    return (size - 1).bit_length()


def _ids(keys: jax.Array, size: int) -> jax.Array:
    """The ids in keys of so many tokens, int32."""
    return (keys & jnp.uint32(2 ** _id_bits(size) - 1)).astype(jnp.int32)


def _below_by_scatter(keys: jax.Array, drawn: jax.Array) -> jax.Array:
    """Of each token the probability `drawn` f32 `[V]` of all that have lesser keys: f32 `[V]`."""
    ordered = _ids(jax.lax.sort(keys, is_stable=False), keys.shape[0])
    return jnp.zeros_like(drawn).at[ordered].set(_sums_before(drawn[ordered]), unique_indices=True)


def _below_by_sorts(keys: jax.Array, drawn: jax.Array) -> jax.Array:
    """The same where a gather or a scatter of a vocabulary is one by one, as on a TPU."""
    ordered, drawn = jax.lax.sort((keys, drawn), num_keys=1, is_stable=False)
    return jax.lax.sort((_ids(ordered, keys.shape[0]), _sums_before(drawn)), num_keys=1, is_stable=False)[1]


def _sums_before(values: jax.Array) -> jax.Array:
    """Of each value the sum of those before it, f32 `[V]`: not less the value, which would lose small ones."""
    return jnp.append(0.0, jnp.cumsum(values)[:-1])

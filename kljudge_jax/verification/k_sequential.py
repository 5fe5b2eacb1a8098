"""SpecTr's K-SEQ: lossless verification of several drafts at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import Verdict, VerifyInputs
from kljudge_jax.verification.distributions import argmax, probabilities, sample
from kljudge_jax.verification.parameters import Parameter
from kljudge_jax.verification.rule import Odds, TokenRule, register

# Halvings of the interval that holds rho. Any rho above the solution is lossless too, and accepts hardly less.
_HALVINGS = 20

# Less than this is what rounding leaves of an empty residual. It is reached as rarely as it is small.
_ROUNDING = 1e-6


@register
@dataclasses.dataclass(frozen=True)
class KSequential(TokenRule):
    r"""Lossless: draw several drafts a cycle, keep what any of them has right; longer on average than `exact`.

    Position by position, with the k drafts that agree with all that was kept so far: accept their tokens X_j in turn,
    each with probability min(1, p(X_j) / (rho q(X_j))), and go on with the drafts that have the accepted token. If
    none is accepted, correct from norm(p - min(q, p / rho) (1 - (1 - beta)^k) / beta), where
    beta = sum_v min(p(v) / rho, q(v)) and rho from 1 to k solves 1 - (1 - beta)^k = rho beta. The drafts that are left
    are again independent draws from q, so each position is lossless on its own. One draft is speculative sampling.

    It is given its drafts through `choose`, by a loop that drafts and scores `drafts` of them side by side. Greedy, or
    from a drafter that draws nothing (prompt lookup), all would be the same: the loop then makes one, and the rule
    is `exact`. All drafts are of the draft model, so a cycle drafts and scores k times as many tokens.

    Maths:
      $$ P(\text{accept } X_j) = \min\left(1, \frac{p(X_j)}{\rho q(X_j)}\right) $$

      $$ \beta = \sum_v \min\left(\frac{p(v)}{\rho}, q(v)\right) $$

      $$ 1 - (1 - \beta)^k = \rho \beta $$

      $$ \text{correction} \propto p - \min\left(q, \frac{p}{\rho}\right) \frac{1 - (1 - \beta)^k}{\beta} $$

    Source: SpecTr, arXiv 2310.15141, in the form of a summary (second-hand); checked by enumeration.

    Attributes:
      drafts: how many, from 1 on; part of the compiled program.
    """

    drafts: int = dataclasses.field(
        default=2, metadata={"parameter": Parameter(integer=True, minimum=1, maximum=64), "static": True}
    )

    spec_name = "kseq"
    source = "SpecTr, arXiv 2310.15141 (second-hand, proven by enumeration)"
    lossless = True
    scorer = "several drafts"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        """Of the tokens of a single draft."""
        return odds.strict()

    def choose(self, key: jax.Array, inputs: VerifyInputs) -> tuple[Verdict, jax.Array]:
        """Draws a verdict over D drafts of one sequence; consumes `key`.

        Args:
          key: PRNG key.
          inputs: with a leading axis D in every field but `greedy`; the drafts are independent and of one prefix.

        Returns:
          The verdict, and the index int32 `[]` of a draft that begins with all that was accepted.
        """
        drafts, length = inputs.draft_tokens.shape
        uniform_key, token_key = jax.random.split(key)
        uniforms = jax.random.uniform(uniform_key, (length, drafts))

        def step(carry, i):
            alive, accepted, going = carry
            first = jnp.argmax(alive)
            accept, _ = _at(inputs, first, i, alive)
            passed = alive & (uniforms[i] < accept)
            going &= (i < inputs.draft_count[first]) & jnp.any(passed)
            token = inputs.draft_tokens[jnp.argmax(passed), i]
            alive = jnp.where(going, alive & (inputs.draft_tokens[:, i] == token), alive)
            return (alive, accepted + going.astype(jnp.int32), going), None

        alive = jnp.ones_like(inputs.draft_count, bool)
        ends = (alive, jnp.zeros_like(inputs.draft_count, shape=()), jnp.ones_like(alive, shape=()))
        if length:
            ends, _ = jax.lax.scan(step, ends, jnp.arange(length))
        alive, accepted, _ = ends
        branch = jnp.argmax(alive).astype(jnp.int32)
        distribution = self.correction_among(inputs, branch, accepted)
        token = jax.lax.cond(
            inputs.greedy,
            lambda: argmax(distribution),
            lambda: sample(token_key, jnp.log(distribution)),
        )
        return Verdict(accepted, token.astype(jnp.int32), jnp.zeros((length,), bool)), branch

    def law_among(self, inputs: VerifyInputs) -> jax.Array:
        """Distribution of what `choose` keeps, given the drafts: f32 `[D, K + 1]`.

        Entry (j, n): n tokens are accepted, and draft j is the first that begins with them.
        """
        drafts, length = inputs.draft_tokens.shape
        reached = jnp.zeros((drafts,)).at[0].set(1.0)
        same = jnp.ones((drafts, drafts), bool)  # row j: the drafts that share draft j's prefix
        rejected_at = []
        for i in range(length):
            accept, _ = jax.vmap(lambda j, alive, i=i: _at(inputs, j, i, alive))(jnp.arange(drafts), same)
            accept = jnp.where((i < inputs.draft_count)[:, None], accept, 0.0)
            rejected = jnp.cumprod(1.0 - accept, axis=1)
            chosen = accept * jnp.pad(rejected[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
            rejected_at.append(reached * rejected[:, -1])
            tokens = inputs.draft_tokens[:, i]
            same &= tokens[:, None] == tokens[None]
            reached = jnp.zeros((drafts,)).at[jnp.argmax(same, axis=1)].add(reached @ chosen)
        return jnp.stack([*rejected_at, reached], axis=1)

    def correction_among(self, inputs: VerifyInputs, branch: jax.Array, num_accepted: jax.Array) -> jax.Array:
        """Distribution of the token after the first `num_accepted` of draft `branch`: f32 `[V]`."""
        length = inputs.draft_tokens.shape[1]
        differs = inputs.draft_tokens != inputs.draft_tokens[branch][None]
        differs &= (jnp.arange(length) < num_accepted)[None]
        alive = ~jnp.any(differs, axis=1)
        p = _point_if_greedy(inputs, inputs.target_logits[branch, num_accepted])
        if length == 0:
            return p
        _, weights = _at(inputs, branch, jnp.minimum(num_accepted, length - 1), alive)
        total = jnp.sum(weights)
        rejected = (num_accepted < inputs.draft_count[branch]) & (total > _ROUNDING)
        return jnp.where(rejected, weights / total, p)


def _at(inputs: VerifyInputs, branch, i, alive: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`k_sequential_step` at position i of the drafts `alive`, of which `branch` is one."""
    p = _point_if_greedy(inputs, inputs.target_logits[branch, i])
    token = inputs.draft_tokens[branch, i]
    q = jax.lax.cond(
        inputs.greedy,
        lambda: jax.nn.one_hot(token, p.shape[0]),
        lambda: probabilities(inputs.draft_logits[branch, i]),
    )
    return k_sequential_step(p, q, inputs.draft_tokens[:, i], alive)


def _point_if_greedy(inputs: VerifyInputs, logits: jax.Array) -> jax.Array:
    return jax.lax.cond(
        inputs.greedy, lambda: jax.nn.one_hot(argmax(logits), logits.shape[0]), lambda: probabilities(logits)
    )


def k_sequential_step(p: jax.Array, q: jax.Array, tokens: jax.Array, alive: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One position of K-SEQ.

    Args:
      p, q: f32 `[V]`, the target's and the draft's distribution.
      tokens: int32 `[D]`, drawn from q independently.
      alive: bool `[D]`, which of them are candidates; k in all.

    Returns:
      The probability f32 `[D]` that each is accepted once it is looked at, 0 where not alive, and the weights f32 `[V]`
      of the token that comes if none is.
    """
    tries = jnp.arange(tokens.shape[0])
    count = jnp.sum(alive)

    def overlap(rho):
        """min(q, p / rho), its sum beta, and (1 - (1 - beta)^k) / beta as the sum that it is, for beta may be 0."""
        kept = jnp.minimum(q, p / rho)
        miss = jnp.clip(1.0 - jnp.sum(kept), 0.0, 1.0)
        return kept, jnp.sum(jnp.where(tries < count, jax.lax.pow(jnp.full(tries.shape, miss), tries), 0.0))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        enough = overlap(middle)[1] <= middle
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # The upper end is always one that is large enough for the weights to be none below 0.
    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.ones_like(p, shape=()), count.astype(jnp.float32)))
    rho = jnp.where(overlap(1.0)[1] <= 1.0, 1.0, high)
    kept, factor = overlap(rho)
    wanted, drawn = jnp.take(p, tokens, mode="clip"), jnp.take(q, tokens, mode="clip")
    accept = jnp.where(wanted > 0, jnp.minimum(1.0, wanted / (rho * drawn)), 0.0)
    return jnp.where(alive, accept, 0.0), jnp.maximum(p - kept * factor, 0.0)

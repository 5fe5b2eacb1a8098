"""Approximate speculative decoding: mismatches that cost little, as long as the answer's budget lasts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import Verdict, VerifyInputs
from kljudge_jax.verification.distributions import is_argmax
from kljudge_jax.verification.exact import GreedyRule
from kljudge_jax.verification.parameters import integer, number
from kljudge_jax.verification.rule import Odds, register


@register
@dataclasses.dataclass(frozen=True)
class RegretBudget(GreedyRule):
    r"""Accept the target's argmax, and a mismatch of small regret while the budget of the whole answer lasts.

    The regret of a mismatch is r = max z - z(d), of the target's raw logits. One at place i (from 0) of a draft of L
    tokens passes iff r / ((L - i) / L) <= gate (the more of the draft is behind it, the more it is worth), the answer's
    summed regret stays at or below the budget, of which something must be left before it, and at most `mismatches`
    pass in one draft. What was spent is the rule's carry: it goes from cycle to cycle, and is 0 for a new answer. A
    budget of 0, or of no mismatches, is the strict rule, ties included. Greedy decoding only; corrections are the
    target's argmax. A token that the target excludes never passes: no budget would be left.

    Maths:
      $$ r_i = \max_v z_i(v) - z_i(d_i), \quad r_i \frac{L}{L - i} \le g, \quad \sum_j r_j \le B $$

    Source: ASD, arXiv 2608.03447, and the authors' code. Its published numbers: a budget of 2.06, a gate of 2.06 and 1
    mismatch for drafts of 5 (of one pair, calibrated); its other form, r / (L - i) with 8, 0.25 and 2, is this one with
    a gate of 0.25 L. L is the length of the draft at hand here, and the same for all drafts there.

    Attributes:
      budget: B, the largest summed regret of an answer, in nats (differences of logits).
      gate: g, the largest regret of a mismatch for the share of the draft that it saves.
      mismatches: the most that pass in one draft.
    """

    budget: float = number(minimum=0.0, relaxes="up")
    gate: float = number(minimum=0.0, relaxes="up")
    mismatches: int = integer(1, minimum=0, relaxes="up")

    spec_name = "asd"
    source = "ASD, arXiv 2608.03447 (code)"

    def init_carry(self) -> jax.Array:
        """The regret spent before the first token: f32 `[]`."""
        return jnp.zeros((), jnp.float32)

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        place = jnp.arange(inputs.draft_tokens.shape[0])
        match, regret = _regrets(inputs)
        length = jnp.maximum(inputs.draft_count, 1).astype(jnp.float32)
        worth = (length - place.astype(jnp.float32)) / length
        spent = self.init_carry() if inputs.carry is None else inputs.carry
        after = jnp.cumsum(regret)
        # Not `after` less the regret: infinite regrets would leave no number.
        before = jnp.append(0.0, after[:-1])
        affordable = (before < self.budget - spent) & (after <= self.budget - spent)
        few = jnp.cumsum((~match).astype(jnp.int32)) <= self.mismatches
        return (match | ((regret <= self.gate * worth) & jnp.isfinite(regret) & affordable & few)).astype(jnp.float32)

    def __call__(self, key: jax.Array, inputs: VerifyInputs) -> Verdict:
        verdict = super().__call__(key, inputs)
        spent = self.init_carry() if inputs.carry is None else inputs.carry
        _, regret = _regrets(inputs)
        return dataclasses.replace(verdict, carry=spent + jnp.sum(jnp.where(verdict.relaxed, regret, 0.0)))


def _regrets(inputs: VerifyInputs) -> tuple[jax.Array, jax.Array]:
    """Which tokens of the draft are the target's argmax, bool `[K]`, and the regret of those that are not, f32 `[K]`:
    0 for a match and past `draft_count`."""
    count = inputs.draft_tokens.shape[0]
    if count == 0:
        return jnp.zeros((0,), bool), jnp.zeros((0,))
    logits = inputs.raw_target_logits[:count]
    match = is_argmax(logits, inputs.draft_tokens)
    chosen = jnp.take_along_axis(logits, inputs.draft_tokens[:, None], axis=-1)[:, 0]
    regret = jnp.max(logits, axis=-1) - chosen
    return match, jnp.where(match | (jnp.arange(count) >= inputs.draft_count), 0.0, regret)

"""The strict rules: what the target alone would have written."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import Verdict, VerifyInputs
from kljudge_jax.verification.rule import Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class SpeculativeSampling(TokenRule):
    r"""Lossless: accept d with probability min(1, p(d) / q(d)), correct from norm(max(p - q, 0)).

    The distribution of the tokens is the target's own, at any temperature and truncation, as long as the draft was
    sampled from q. Greedy: accept iff d is the target's argmax. Source: Leviathan et al., arXiv 2211.17192, and Chen et
    al., arXiv 2302.01318.

    Maths:
      $$ P(\text{accept } d) = \min\left(1, \frac{p(d)}{q(d)}\right) $$

      $$ \text{correction} \sim \frac{\max(p - q, 0)}{\sum_v \max(p(v) - q(v), 0)} $$
    """

    spec_name = "exact"
    source = "arXiv 2211.17192, 2302.01318 (paper and code)"
    lossless = True

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        return odds.strict()


class GreedyRule(TokenRule):
    """A rule for greedy decoding only: the target's argmax corrects, whatever `greedy` says."""

    greedy_only = True

    def acceptance_distribution(self, inputs: VerifyInputs) -> jax.Array:
        return super().acceptance_distribution(_as_greedy(inputs))

    def correction(self, inputs: VerifyInputs, num_accepted: jax.Array, odds: Odds | None = None) -> jax.Array:
        return super().correction(_as_greedy(inputs), num_accepted, odds)

    def __call__(self, key: jax.Array, inputs: VerifyInputs) -> Verdict:
        return super().__call__(key, _as_greedy(inputs))


@register
@dataclasses.dataclass(frozen=True)
class GreedyExact(GreedyRule, SpeculativeSampling):
    r"""Lossless, greedy decoding only: accept d iff it is the target's argmax, lowest id in a tie.

    The target's argmax corrects, whatever `greedy` says: a temperature above 0 has to be refused before a rule is
    called. Source: the temperature 0 of Leviathan et al., arXiv 2211.17192.

    Maths:
      $$ \text{accept } d \iff d = \operatorname{argmax}_v p(v) $$
    """


def _as_greedy(inputs: VerifyInputs) -> VerifyInputs:
    return dataclasses.replace(inputs, greedy=jnp.asarray(True))

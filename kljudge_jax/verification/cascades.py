"""Speculative cascades: at each position the draft or the target is followed, as a deferral rule says."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.distributions import Normaliser, excess, probabilities, total_variation
from kljudge_jax.verification.parameters import number
from kljudge_jax.verification.rule import Odds, TokenRule, register


@register
@dataclasses.dataclass(frozen=True)
class CascadeOpt(TokenRule):
    r"""Accept whatever is drafted where the draft is about as sure as the target; elsewhere the strict rule decides.

    It defers to the target, and is strict, where max q < max p - alpha TV(p, q): a mismatch costs a rejection, of
    which TV is the probability, and alpha is what one is worth in accuracy. The token d itself is not looked at. An
    alpha of 0 defers where the target is the surer one; 1 or more never defers, for max p - max q is at most TV(p, q).
    Below 0 it defers more, and at -inf it is the strict rule. p and q are those of the raw logits at temperature 1,
    greedy or not. Corrections are the strict rule's, and the answer is speculative sampling from q where it does not
    defer and from p where it does. A draft without a distribution (prompt lookup) is as sure as can be, and is refused.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor \max_v q(v) \ge \max_v p(v) - \alpha \text{TV}(p, q) $$

      $$ \text{TV}(p, q) = \frac{1}{2} \sum_v |p(v) - q(v)| $$

    Source: Narasimhan et al., arXiv 2405.19261, equation 10, and the authors' code. That code reads TV, though not the
    two maxima, at the sampling temperature: greedy, it is 1 at every mismatch, and here what the raw logits say.

    Attributes:
      alpha: how much less sure the draft may be, in units of TV(p, q).
    """

    alpha: float = number(relaxes="up")

    spec_name = "cascade_opt"
    source = "speculative cascades OPT, arXiv 2405.19261 (code)"
    ours = "that it reads TV at temperature 1"
    compares_drafts = True
    compared = "the draft's largest probability"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        target = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        allowance = self.alpha * total_variation(target, inputs.raw_draft_logits)
        followed = Normaliser.of(inputs.raw_draft_logits).top >= Normaliser.of(target).top - allowance
        return jnp.where(followed, 1.0, odds.strict())


@register
@dataclasses.dataclass(frozen=True)
class CascadeToken(TokenRule):
    r"""Accept the tokens that the target finds nearly as probable as its best one; others as the target draws them.

    A is the set of tokens with p(v) >= (1 - alpha) max p, p of the raw logits at temperature 1. Drafted tokens follow
    pi(v) = q(v) 1[v in A] + eta p(v), with eta the mass that q has outside A: the draft's own token if it is in A, and
    one of the target's otherwise. Accept d with probability min(1, pi(d) / q(d)), which is 1 in A, and correct from
    norm(max(pi - q, 0)). The bonus token is p's. Greedy: accept iff d is in A or the target's argmax; that is
    `lenience` with a factor of 1 - alpha, whose form when sampling is another. An alpha of 0 leaves the argmax in A,
    which is strict when greedy, save that a tie passes; below 0, A is empty and the rule is strict at any temperature.
    When sampling, a token outside A passes the less often the more there are inside: a larger alpha keeps more on
    average alone, and a small one less than the strict rule, for pi is sharper than p even where p is q.

    Maths:
      $$ A = \left\{v : p(v) \ge (1 - \alpha) \max_u p(u)\right\}, \quad \eta = \sum_{v \notin A} q(v) $$

      $$ \pi(v) = q(v) 1[v \in A] + \eta p(v), \quad P(\text{accept } d) = \min\left(1, \frac{\pi(d)}{q(d)}\right) $$

    Source: Narasimhan et al., arXiv 2405.19261, equation 15 (the third of its token-specific rules), and the authors'
    code.

    Attributes:
      alpha: how much less probable than the target's best a token of A may be, as a share of it.
    """

    alpha: float = number(maximum=1.0, relaxes="up")

    spec_name = "cascade_tok"
    source = "speculative cascades TOK, arXiv 2405.19261 (code)"

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        count = inputs.draft_tokens.shape[0]
        near = self._near(inputs.raw_target_logits[:count])
        inside = jnp.take_along_axis(near, inputs.draft_tokens[:, None], axis=-1)[:, 0]

        def sampled():
            outside = jnp.sum(jnp.where(near, 0.0, probabilities(inputs.draft_logits)), axis=-1)
            # A ratio that is infinite (q(d) = 0) is bounded first: times an eta of 0 it would be no number.
            return jnp.minimum(1.0, outside * jnp.minimum(odds.ratio(), jnp.finfo(jnp.float32).max))

        return jnp.where(inside, 1.0, jax.lax.cond(inputs.greedy, odds.strict, sampled))

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        near = self._near(inputs.raw_target_logits[num_accepted])
        owed = jnp.sum(jnp.where(near, 0.0, q)) * p
        return jnp.where(near, owed, excess(owed, q))

    def _near(self, logits: jax.Array) -> jax.Array:
        """Which tokens are in A: f32 `[..., V]` to bool `[..., V]`."""
        # On logits, which are exact where probabilities underflow.
        return logits - jnp.max(logits, axis=-1, keepdims=True) >= jnp.log1p(-jnp.asarray(self.alpha, jnp.float32))

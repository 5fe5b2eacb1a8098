"""What a learned judge reads at one position: states after the draft token, and numbers off the logits before it.

Pure functions of one position, in float32; vmap them over positions and batches. They live beside the rules because
the loop runs them; the trainers of `judges/` read what they wrote.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.verification.distributions import Normaliser, argmax, entropy, kl_divergence, kl_on_support

# What each set-up takes from `VerifyInputs` beyond the logits. "DT", "DD" and "DD-DT" are AutoJudge's names (arXiv
# 2504.20039): the target's state, the draft's, the draft's followed by the target's.
SETUPS: dict[str, frozenset[str]] = {
    "DT": frozenset({"target_hidden"}),
    "DD": frozenset({"draft_hidden"}),
    "DD-DT": frozenset({"draft_hidden", "target_hidden"}),
    "logits": frozenset(),
    "pivot": frozenset({"target_hidden"}),
}

# Those that read nothing of the draft but which token it proposed.
TARGET_ALONE = ("DT", "pivot")

PRIMITIVES = (
    "kl_target_draft",
    "kl_draft_target",
    "target_entropy",
    "draft_entropy",
    "target_top",
    "target_margin",
    "target_logprob",
    "draft_logprob",
)


def logit_primitives(target_logits: jax.Array, draft_logits: jax.Array, token: jax.Array) -> jax.Array:
    """The numbers that training-free rules are made of, f32 `[8]`, in the order of `PRIMITIVES`.

    Divergences, entropies and log-probabilities in nats; `target_top` is the target's largest probability and
    `target_margin` how far the second largest is below it. That of target and draft is `kl_on_support`; that of draft
    and target is infinite where the target excludes what the draft does not.

    Args:
      target_logits, draft_logits: raw logits `[V]` that predict the token.
      token: int32 `[]`, the draft token.
    """
    target, draft = target_logits.astype(jnp.float32), draft_logits.astype(jnp.float32)
    p, q = Normaliser.of(target), Normaliser.of(draft)
    others = jnp.where(jnp.arange(target.shape[0]) == argmax(target), -jnp.inf, target)
    return jnp.stack(
        [
            kl_on_support(target, draft),
            kl_divergence(draft, target),
            entropy(target),
            entropy(draft),
            p.top,
            p.top - p.probability(jnp.max(others, keepdims=True))[0],
            p.log_probability(target[token][None])[0],
            q.log_probability(draft[token][None])[0],
        ]
    )


def second_order_kl(target_logits: jax.Array, draft_logits: jax.Array) -> jax.Array:
    """KL(p || q) to second order in the logit gap delta = target - draft, f32 `[]` in nats.

    1/4 sum_ij q_i q_j (delta_i - delta_j)^2, which is half the variance of delta under q. Source: JuDi, arXiv
    2601.04766. Logits `[V]` both; finite.
    """
    target, draft = target_logits.astype(jnp.float32), draft_logits.astype(jnp.float32)
    q = Normaliser.of(draft).probability(draft)
    gap = target - draft
    gap = gap - jnp.sum(q * gap)
    return jnp.sum(q * gap * gap) / 2


def judge_features(
    setup: str,
    target_hidden: jax.Array | np.ndarray | None,
    draft_hidden: jax.Array | np.ndarray | None,
    primitives: jax.Array | np.ndarray,
) -> jax.Array:
    """What a head of that set-up reads, f32 `[..., F]`.

    "DT", "DD", "DD-DT": the states named by `SETUPS`. "logits": the primitives. "pivot": the target's state, its
    probability of the token, its entropy in nats (arXiv 2511.00351).

    Args:
      setup: a key of `SETUPS`.
      target_hidden: `[..., Ht]`, final-norm state after the token was consumed; None where the set-up does not take it.
      draft_hidden: `[..., Hd]`, the draft's.
      primitives: f32 `[..., 8]`, of the logits that predict the token.
    """
    if setup == "logits":
        return jnp.asarray(primitives)
    if setup == "pivot":
        assert target_hidden is not None
        target_logprob, target_entropy = (
            primitives[..., PRIMITIVES.index(name)][..., None] for name in ("target_logprob", "target_entropy")
        )
        return jnp.concatenate([target_hidden.astype(jnp.float32), jnp.exp(target_logprob), target_entropy], axis=-1)
    by_setup: dict[str, list[Any]] = {
        "DT": [target_hidden],
        "DD": [draft_hidden],
        "DD-DT": [draft_hidden, target_hidden],
    }
    return jnp.concatenate([state.astype(jnp.float32) for state in by_setup[setup]], axis=-1)


def feature_count(setup: str, target_hidden_size: int, draft_hidden_size: int) -> int:
    """F of a set-up."""
    sizes = {"DT": target_hidden_size, "DD": draft_hidden_size, "DD-DT": draft_hidden_size + target_hidden_size}
    return sizes.get(setup, len(PRIMITIVES) if setup == "logits" else target_hidden_size + 2)

"""A head's chain over known text, several steps ahead, with its own output in place of the target's states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.models.eagle3 import Eagle3Head
from kljudge_jax.models.transformer import rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadBatch:
    """Sequences that a head learns from; B rows of T tokens, of which the first ends[b] are real.

    Attributes:
      states: `[B, T, (L + 1) Ht]`, of the target: of L layers, and after its final norm.
      tokens: int32 `[B, T]`.
      starts: int32 `[B]`, where the answers begin; at least 2.
      ends: int32 `[B]`.
    """

    states: jax.Array
    tokens: jax.Array
    starts: jax.Array
    ends: jax.Array


class Step(NamedTuple):
    """What a head predicts at one place of its draft, and what it should; A anchors a row.

    Attributes:
      logits: f32 `[B, A, Vd]`.
      target_logits: f32 `[B, A, Vd]`, the target's of the same tokens.
      tokens: int32 `[B, A]`, what follows in the text.
      valid: bool `[B, A]`.
    """

    logits: jax.Array
    target_logits: jax.Array
    tokens: jax.Array
    valid: jax.Array


def chains(head: Eagle3Head, embeddings: jax.Array, batch: HeadBatch, anchors: int, steps: int) -> Iterator[Step]:
    """Drafts from every place of the answers, for so many steps: training-time test.

    Anchor a of a row is the entry that predicts the answer's token a. Step j goes on from it over the text, as a draft
    whose first j tokens were right: it reads the head's output of step j - 1, and attends to the target's states up to
    the anchor and to the chain's own entries.

    Source: EAGLE-3, arXiv 2503.01840, section 3.1.

    Args:
      head: what learns; its head's rows are the target's own.
      embeddings: `[B, T, H]`, of `batch.tokens`.
      batch: the text.
      anchors: A, how many tokens of each answer count.
      steps: from 1 on.
    """
    block, decoder = head.layers[0], head.config.decoder
    attention = block.attention
    count, width = batch.tokens.shape
    heads, groups, dim = decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
    own = len(head.config.layers) * head.config.target_size
    features = head.features((batch.states[..., :own],))
    last = batch.states[..., own:].astype(head.dtype)
    following = jnp.roll(embeddings, -1, axis=1).astype(features.dtype)  # entry t has the token at t + 1

    def split(x: jax.Array, number: int, places: jax.Array) -> jax.Array:
        return rotate(x.reshape(*x.shape[:2], number, dim), places, decoder.layer_rope(0))

    def plain(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], groups, dim)

    def taken(x: jax.Array, places: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, jnp.clip(places, 0, width - 1)[..., None], axis=1)

    _, joined = block.joined(features, following)
    every = jnp.broadcast_to(jnp.arange(width)[None], (count, width))
    keys, values = split(attention.key(joined), groups, every), plain(attention.value(joined))
    at = batch.starts[:, None] - 2 + jnp.arange(anchors)[None]
    visible = (every[:, None, :] <= at[..., None])[:, None, None]  # [B, 1, 1, A, T]
    scale = decoder.query_scale if decoder.query_scale is not None else dim**-0.5
    chain: list[tuple[jax.Array, jax.Array]] = []
    state = taken(features, at)
    for j in range(steps):
        residual, joined = block.joined(state, taken(following, at + j))
        query = split(attention.query(joined), heads, at + j) * scale
        query = query.reshape(count, anchors, groups, heads // groups, dim)
        if j:
            chain.append((split(attention.key(joined), groups, at + j), plain(attention.value(joined))))
        scores = [jnp.where(visible, _dot("bagrd,btgd->bgrat", query, keys), -jnp.inf)]
        scores += [_dot("bagrd,bagd->bgra", query, key)[..., None] for key, _ in chain]
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
        mixed = _dot("bgrat,btgd->bagrd", weights[..., :width].astype(values.dtype), values)
        for i, (_, value) in enumerate(chain):
            share = weights[..., width + i].transpose(0, 3, 1, 2)[..., None]
            mixed = mixed + share * value[:, :, :, None].astype(share.dtype)
        attended = attention.out(mixed.reshape(count, anchors, heads * dim).astype(state.dtype))
        x, normed = block.mlp_norm.of_sum(residual, attended)
        state = x + block.mlp(normed)
        goal = at + 2 + j
        yield Step(
            head.draft_logits(state),
            head.head.in_float32(taken(last, goal - 1)),
            jnp.take_along_axis(batch.tokens, jnp.clip(goal, 0, width - 1), axis=1),
            goal < batch.ends[:, None],
        )


def _dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A product that is added up in float32, as those of attention are in decoding."""
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def loss_and_acceptance(
    head: Eagle3Head, known: jax.Array, steps: Iterator[Step], decay: float
) -> tuple[jax.Array, jax.Array]:
    """The loss of some steps, and how often a greedy draft is right up to each.

    The loss is the cross-entropy of the head against the target's distribution over the tokens that it can draft, where
    the text goes on with one of them; step j counts `decay ** j`.

    Args:
      known: bool `[V]`, the tokens that it can draft.
      steps: of `chains`.

    Returns:
      the loss f32 `[]`, and f32 `[steps, 2]`: how many anchors had a draft that was right so far, and of how many.
    """
    ids = head.ids[...]
    total, right, found = jnp.float32(0), None, []
    for j, step in enumerate(steps):
        covered = (step.valid & known[step.tokens]).astype(jnp.float32)
        wanted = jax.lax.stop_gradient(jax.nn.softmax(step.target_logits, axis=-1))
        surprise = -jnp.sum(wanted * jax.nn.log_softmax(step.logits, axis=-1), axis=-1)
        total += decay**j * jnp.sum(surprise * covered) / jnp.maximum(jnp.sum(covered), 1)
        hit = ids[jnp.argmax(step.logits, axis=-1)] == step.tokens
        right = hit if right is None else right & hit
        found.append(jnp.stack([jnp.sum(right & step.valid), jnp.sum(step.valid)]).astype(jnp.float32))
    return total, jnp.stack(found)

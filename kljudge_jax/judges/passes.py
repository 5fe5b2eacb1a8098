"""The passes over two models that mining is made of: many questions side by side, each with its rows of the caches.

A cache has a row for each question in flight. A pass over a few of them takes their rows out, and puts them back: so
that it costs what the few cost. All work on a row depends on that row alone.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.protocols import Cache, Features, Model
from kljudge_jax.errors import InputError
from kljudge_jax.parallel.hosts import fetch
from kljudge_jax.verification.distributions import is_distribution
from kljudge_jax.verification.features import logit_primitives, second_order_kl

# A pass takes one of these many tokens a row, so that few programs are compiled.
WIDTHS = (8, 32, 128)


def _take(cache: Cache, rows: jax.Array) -> Cache:
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), cache)


def _put(cache: Cache, rows: jax.Array, part: Cache) -> Cache:
    return jax.tree.map(lambda x, new: x.at[rows].set(new, mode="drop"), cache, part)


def _states(features: Features) -> jax.Array:
    if features.hidden is None:
        raise InputError("mining reads hidden states, and a model of the pair gives logits alone")
    return features.hidden


@functools.partial(jax.jit, static_argnames="wanted", donate_argnames="cache")
def extend(
    model: Model,
    cache: Cache,
    rows: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    last: jax.Array,
    *,
    wanted: str,
):
    """Lets a model consume tokens of some rows. `cache` is donated.

    Args:
      model: target or draft.
      cache: one row for each question in flight.
      rows: int32 `[g]`, which; a number past the last row stands for none.
      tokens: int32 `[g, W]`.
      start: int32 `[g]`, the position of the first of them.
      last: int32 `[g]`, the place in `tokens` of the last real one.
      wanted: "nothing"; "choices", the model's argmax after every token, int32 `[g, W]`; or "ends", raw logits
        f32 `[g, 2, V]` after the last two real tokens and the final-norm state f32 `[g, H]` after the last.

    Returns:
      what was wanted, and the cache.
    """
    features, part = model(tokens, _take(cache, rows).at_length(start))
    hidden = _states(features)
    cache = _put(cache, rows, part)
    if wanted == "choices":
        # Row by row: logits of all rows at once would be gigabytes for a large vocabulary.
        return jax.lax.map(lambda states: jnp.argmax(model.logits(states), axis=-1).astype(jnp.int32), hidden), cache
    if wanted == "ends":
        ends = jnp.take_along_axis(hidden, jnp.stack([last - 1, last], axis=1)[..., None], axis=1)
        return (model.logits(ends), ends[:, 1].astype(jnp.float32)), cache
    return None, cache


@functools.partial(jax.jit, donate_argnames="cache")
def roll_out(
    target: Model,
    cache: Cache,
    rows: jax.Array | None,
    tokens: jax.Array,
    length: jax.Array,
    limit: jax.Array,
    running: jax.Array,
    eos: jax.Array,
    enough: jax.Array,
    most_steps: jax.Array,
):
    """Continues rows greedily, a token a step, until `enough` of those that ran have stopped. `cache` is donated.

    Args:
      target: the model.
      cache: holds all tokens of each running row but its last.
      rows: int32 `[b]`, which rows these are; None for all in order. A number past the last stands for none.
      tokens: int32 `[b, S]`, stale from `length` on.
      length: int32 `[b]`.
      limit: int32 `[b]`, the most tokens of a row.
      running: bool `[b]`.
      eos: int32 `[E]`.
      enough: int32 `[]`.
      most_steps: int32 `[]`.

    Returns:
      tokens, length, running, failed (bool `[b]`: the model returned NaN or +inf), and the cache.
    """
    part = cache if rows is None else _take(cache, rows)
    began = jnp.sum(running)

    def unfinished(carry):
        step, _, _, _, running, _ = carry
        left = jnp.sum(running)
        return (step < most_steps) & (left > 0) & (began - left < enough)

    def advance(carry):
        step, part, tokens, length, running, failed = carry
        at = jnp.maximum(length - 1, 0)
        newest = jnp.take_along_axis(tokens, at[:, None], axis=1)
        features, part = target(newest, part.at_length(at))
        logits = target.logits(_states(features)[:, 0])
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        fit = is_distribution(logits)
        grows = running & fit
        place = jnp.where(grows, length, tokens.shape[1])
        tokens = tokens.at[jnp.arange(tokens.shape[0]), place].set(token, mode="drop")
        length = length + grows
        ended = jnp.any(token[:, None] == eos, axis=1) | (length >= limit)
        return step + 1, part, tokens, length, grows & ~ended, failed | (running & ~fit)

    carry = jnp.int32(0), part, tokens, length, running, jnp.zeros_like(running)
    _, part, tokens, length, running, failed = jax.lax.while_loop(unfinished, advance, carry)
    return tokens, length, running, failed, part if rows is None else _put(cache, rows, part)


@jax.jit
def compare(target_ends: jax.Array, draft_ends: jax.Array, tokens: jax.Array, ids: jax.Array) -> dict[str, jax.Array]:
    """The columns of a dataset that come from logits.

    Args:
      target_ends, draft_ends: raw logits f32 `[g, 2, V]` that predict the judged token and the one after it.
      tokens: int32 `[g]`, the judged ones.
      ids: int32 `[G]`, whose gaps are kept.
    """
    gaps = jnp.take(target_ends, ids, axis=-1) - jnp.take(draft_ends, ids, axis=-1)
    return {
        "primitives": jax.vmap(logit_primitives)(target_ends[:, 0], draft_ends[:, 0], tokens),
        "second_order_kl": jax.vmap(second_order_kl)(target_ends[:, 0], draft_ends[:, 0]),
        "gap": gaps[:, 0],
        "next_gap": gaps[:, 1],
    }


def width_of(tokens: int) -> int:
    """The narrowest pass that takes so many tokens, or the widest there is."""
    return next((width for width in WIDTHS if width >= tokens), WIDTHS[-1])


class BatchedScorer:
    """One model with the cache of all questions in flight.

    Args:
      model: target or draft.
      rows: questions in flight.
      capacity: positions of a row, `WIDTHS[-1]` of them spare.
      group: rows that one pass takes.
    """

    def __init__(self, model: Model, rows: int, capacity: int, group: int):
        self.model, self.rows, self.group = model, rows, group
        # On a mesh it is made where it will lie, of which one host may hold a part alone.
        self.cache = jax.jit(lambda: model.init_cache(rows, capacity))()

    def choices(self, work: list[tuple[int, np.ndarray, int]]) -> list[np.ndarray]:
        """The model's argmax after every token that `work` (at most a group of row, tokens, position) consumes."""
        found: list[list[np.ndarray]] = [[] for _ in work]
        for part, _ in self._chunks(work, ends=False):
            out = fetch(self._run(part, "choices"))
            for i, (_, tokens, _) in enumerate(part):
                found[i].append(out[i, : len(tokens)])
        return [np.concatenate(chunks) for chunks in found]

    def ends(self, work: list[tuple[int, np.ndarray, int]]) -> tuple[jax.Array, jax.Array]:
        """Consumes `work`, two tokens a row at the least: raw logits after the last two, and the last state."""
        for part, final in self._chunks(work, ends=True):
            out = self._run(part, "ends" if final else "nothing")
        return out

    def _chunks(self, work, ends: bool):
        """Cuts work to passes of the widest size; with `ends`, everything before the last pass, then the last."""
        widest = WIDTHS[-1]
        rest = [(row, np.asarray(tokens, np.int32), start) for row, tokens, start in work]
        while max((len(tokens) for _, tokens, _ in rest), default=0) > (widest if ends else 0):
            now, later = [], []
            for row, tokens, start in rest:
                most = min(widest, len(tokens) - 2) if ends else widest
                take = 0 if ends and len(tokens) <= widest else min(most, len(tokens))
                now.append((row, tokens[:take], start))
                later.append((row, tokens[take:], start + take))
            yield now, False
            rest = later
        if ends:
            yield rest, True

    def _run(self, part, wanted: str):
        width = width_of(max(len(tokens) for _, tokens, _ in part))
        tokens = np.zeros((self.group, width), np.int32)
        rows, start = np.full(self.group, self.rows, np.int32), np.zeros(self.group, np.int32)
        last = np.ones(self.group, np.int32)
        for i, (row, some, position) in enumerate(part):
            if len(some):
                rows[i], start[i], last[i] = row, position, len(some) - 1
                tokens[i, : len(some)] = some
        out, self.cache = extend(self.model, self.cache, rows, tokens, start, last, wanted=wanted)
        return out

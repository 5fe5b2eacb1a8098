"""Rows of caches and of drafters' states, whatever those are made of: every array leads with rows or is in a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Cache


def is_cache(x: Any) -> bool:
    return isinstance(x, Cache)


def map_state(of_cache: Callable, of_array: Callable, *trees: Any) -> Any:
    """A tree of caches and arrays with each cache and each other array mapped."""

    def mapped(x, *others):
        return of_cache(x, *others) if is_cache(x) else of_array(x, *others)

    return jax.tree.map(mapped, *trees, is_leaf=is_cache)


def holds_caches_alone(state: Any) -> bool:
    """Whether a state remembers nothing but caches, so that one row can go on from what another has consumed."""
    return all(map(is_cache, jax.tree.leaves(state, is_leaf=is_cache)))


def least_rollback(state: Any) -> int | None:
    """How many tokens all caches of a state can take back; None is any number."""
    caches = filter(is_cache, jax.tree.leaves(state, is_leaf=is_cache))
    return min((cache.rollback for cache in caches if cache.rollback is not None), default=None)


def put(state: Any, row: jax.Array, one: Any) -> Any:
    """A state of one row in place of row int32 `[]`."""
    return map_state(
        lambda cache, other: cache.put(row, other),
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), row, 0),
        state,
        one,
    )


def follow(state: Any, source: jax.Array, start: jax.Array, count: int) -> Any:
    """Row b goes on from row `source[b]` int32 `[B]`, whose slots from `start[b]` on it gets, `count` of them."""
    return map_state(lambda cache: cache.follow(source, start, count), lambda x: jnp.take(x, source, axis=0), state)


def resized(state: Any, slots: int) -> Any:
    """With caches of so many slots."""
    return map_state(lambda cache: cache.resized(slots), lambda x: x, state)


def repeated(tree: Any, times: int) -> Any:
    """`[B, ...]` to `[B times, ...]`, the repetitions of a row side by side."""
    return tree if times == 1 else jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)

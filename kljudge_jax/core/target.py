"""Calls of a model, held to its protocol while they are traced: what is wrong is said before anything compiles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Cache, Features, check_methods
from kljudge_jax.errors import InputError

# What a cache has, as `Cache` says it.
_CACHE = ("length", "slots", "rollback", "at_length", "resized", "take", "put", "follow")


def alike(a: Any, b: Any) -> bool:
    """Whether two trees have one structure, and arrays of the same shapes and dtypes."""

    def kinds(tree):
        return [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]

    structures: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    return structures[0] == structures[1] and kinds(a) == kinds(b)


def spelled(x: Any) -> str:
    """An array's dtype and shape, as messages have them."""
    return f"{jnp.result_type(x).name}[{','.join(map(str, jnp.shape(x)))}]"


def new_cache(model: Any, batch: int, slots: int, whose: str) -> Any:
    """An empty cache of the model that messages call `whose`."""
    check_methods(model, whose)
    cache = model.init_cache(batch, slots)
    lacking = [name for name in _CACHE if not hasattr(cache, name)]
    if lacking:
        raise InputError(
            f"the {whose}'s init_cache returns a {type(cache).__name__} without {lacking[0]!r}: see kljudge_jax.Cache"
        )
    return cache


def check_rollback(cache: Any, tokens: int, whose: str) -> None:
    """Refuses a cache that cannot take back as many tokens as a cycle may."""
    if cache.rollback is not None and cache.rollback < tokens:
        raise InputError(
            f"the {whose}'s cache can take back {cache.rollback} tokens (Cache.rollback), and a cycle takes back up to "
            f"{tokens}: shorten the draft, or give the model a cache without a ring"
        )


def consume(
    model: Any, tokens: jax.Array, cache: Any, layers: tuple[int, ...] = (), whose: str = "target"
) -> tuple[Features, Any]:
    """`model(tokens, cache, layers=layers)`, checked; models that give no layers need not know of them."""
    asked = {"layers": layers} if layers else {}
    answer = model(tokens, cache, **asked)
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Features):
        raise InputError(f"the {whose}'s call returns no (Features, cache): see Model.__call__ in kljudge_jax.Model")
    features, written = answer
    if not isinstance(written, Cache):
        raise InputError(f"the {whose}'s call returns a {type(written).__name__} that is no kljudge_jax.Cache")
    if not alike(cache, written):
        raise InputError(
            f"the {whose}'s call returns a cache of other shapes, dtypes or structure than the one that it takes "
            "(Model.__call__)"
        )
    batch, length = tokens.shape
    for name, state in (("hidden", features.hidden), ("logits", features.logits)):
        if state is not None and (state.ndim != 3 or state.shape[:2] != (batch, length)):
            raise InputError(
                f"the {whose}'s call returns {name} {list(state.shape)} for tokens {[batch, length]} "
                f"(Model.__call__): return [{batch}, {length}, ...]"
            )
    if features.hidden is None and features.logits is None:
        raise InputError(f"the {whose}'s call returns Features without hidden and without logits (Model.__call__)")
    if len(features.layers) != len(layers):
        raise InputError(
            f"the {whose}'s call returns {len(features.layers)} layers of the {len(layers)} asked for: see "
            "`layers` of Model.__call__"
        )
    return features, written


def logits_of(model: Any, features: Features, whose: str = "target") -> jax.Array:
    """Raw logits f32 `[..., V]` of what the model computed."""
    raw = model.logits(features.hidden) if features.logits is None else features.logits
    if features.hidden is not None and raw.shape[:-1] != features.hidden.shape[:-1]:
        raise InputError(
            f"the {whose}'s logits are {spelled(raw)} for states {spelled(features.hidden)}: see Model.logits"
        )
    if raw.shape[-1] != model.vocab_size:
        raise InputError(
            f"the {whose}'s logits have {raw.shape[-1]} tokens, and its vocab_size is {model.vocab_size}: "
            "see Model.logits"
        )
    return raw.astype(jnp.float32)


def at_places(features: Features, places: jax.Array) -> Features:
    """Hidden states and logits at places int32 `[B, n]` of each row."""

    def taken(x):
        return None if x is None else jnp.take_along_axis(x, places[..., None], axis=1)

    return Features(taken(features.hidden), (), taken(features.logits))


def until(features: Features, length: int) -> Features:
    """The first positions of each row."""
    return jax.tree.map(lambda x: x[:, :length], features)

"""Calls of a drafter, held to its protocol while they are traced: what is wrong is said before anything compiles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.core.protocols import Context, Draft, Drafter, Models, Request, Window
from kljudge_jax.core.target import alike, spelled
from kljudge_jax.errors import InputError


def check_drafter(drafter: Any) -> None:
    """Refuses what lacks a method of a drafter, or cannot be a static part of a program."""
    name = type(drafter).__name__
    for method in ("init", "observe", "propose"):
        if not callable(getattr(drafter, method, None)):
            raise InputError(
                f"{name} has no method {method!r}: see kljudge_jax.Drafter; one without a state returns () from init "
                "and from observe"
            )
    try:
        hash(drafter)
    except TypeError as error:
        raise InputError(
            f"{name} is not hashable ({error}): write a drafter as a frozen dataclass, and keep its arrays in "
            "Models.draft, not in itself"
        ) from None


def observe(drafter: Drafter, models: Models, state: Any, window: Window) -> Any:
    """`drafter.observe`, checked."""
    after = drafter.observe(models, state, window)
    if not alike(state, after):
        raise InputError(
            f"{type(drafter).__name__}.observe returns another state than init made (shapes, dtypes or structure): see "
            "kljudge_jax.Drafter"
        )
    return after


def propose(
    drafter: Drafter, models: Models, cache: Any, state: Any, context: Context, request: Request
) -> tuple[Draft, Any, Any]:
    """`drafter.propose`, checked."""
    name = type(drafter).__name__
    answer = drafter.propose(models, cache, state, context, request)
    if not isinstance(answer, tuple) or len(answer) != 3 or not isinstance(answer[0], Draft):
        raise InputError(f"{name}.propose returns no (Draft, target_cache, state): see kljudge_jax.Drafter")
    draft, written, after = answer
    if not alike(cache, written):
        raise InputError(f"{name}.propose returns another target_cache than it was given: see kljudge_jax.Drafter")
    if not alike(state, after):
        raise InputError(f"{name}.propose returns another state than init made: see kljudge_jax.Drafter")
    batch, length = context.consumed.shape[0], request.draft_length
    for field, wanted in (("tokens", (batch, length)), ("count", (batch,))):
        found = getattr(draft, field)
        if jnp.shape(found) != wanted or jnp.result_type(found) != jnp.int32:
            right = spelled(jax.ShapeDtypeStruct(wanted, jnp.int32))
            raise InputError(f"{name}.propose returns {field} {spelled(found)}: return {right}")
    for field in ("logits", "raw_logits"):
        found = getattr(draft, field)
        if found is not None and (found.ndim != 3 or found.shape[:2] != (batch, length)):
            raise InputError(
                f"{name}.propose returns {field} {spelled(found)} for a draft of {[batch, length]}: return "
                f"[{batch}, {length}, V]"
            )
    return draft, written, after

"""A branch that caches pass through in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")


def run_if(wanted: jax.Array, function: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """`function(carry)` where `wanted` bool `[]` holds, else `carry`.

    XLA copies what a conditional changes, whole caches once a branch; a loop updates what it carries in place. So this
    is a loop of at most one turn.
    """

    def turn(state):
        return jnp.zeros_like(wanted), function(state[1])

    return jax.lax.while_loop(lambda state: state[0], turn, (wanted, carry))[1]

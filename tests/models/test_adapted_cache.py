"""The cache of an adapted model: rows that follow others copy the slots that were asked for, and no row whole."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljudge_jax as kj

ROWS, SLOTS, COUNT, RING = 4, 12, 3, 5


def init_cache(slots):
    return {
        "slots first": jnp.zeros((1, slots, 2, 3)),
        "heads first": jnp.zeros((1, 2, slots, 3), jnp.bfloat16),
        "masks": jnp.zeros((1, slots), jnp.bool_),
        "ring": jnp.zeros((1, RING, 3)),
        "twice": jnp.zeros((1, slots, slots)),
        "at": jnp.zeros((), jnp.int32),
    }


# Where slots are, counted with the rows' axis; a leaf that is not named is copied whole.
SLOT_AXIS = {"slots first": 2, "heads first": 3, "masks": 2}


def call(params, tokens, positions, cache, mask):
    return params[tokens], cache | {"at": cache["at"] + tokens.shape[1]}


@pytest.fixture(scope="module")
def cache():
    model = kj.adapt(call, init_cache, jnp.eye(5), vocab_size=5, rewind=lambda cache, n: cache | {"at": n})
    random = np.random.default_rng(0)
    filled = jax.tree.map(
        lambda x: jnp.asarray(random.integers(0, 2 if x.dtype == bool else 99, x.shape)).astype(x.dtype),
        model.init_cache(ROWS, SLOTS).stacked,
    )
    return dataclasses.replace(model.init_cache(ROWS, SLOTS), stacked=filled)


def by_hand(stacked, source, start):
    found = {}
    for name, x in jax.tree.map(np.asarray, stacked).items():
        if name not in SLOT_AXIS:
            found[name] = x[source]
            continue
        after = x.copy()
        for row, (of, at) in enumerate(zip(source, start, strict=True)):
            piece = (slice(None),) * (SLOT_AXIS[name] - 1) + (slice(at, at + COUNT),)
            after[row][piece] = x[of][piece]
        found[name] = after
    return found


def followed(cache, source, start):
    return cache.follow(source, start, COUNT).stacked


@pytest.mark.parametrize("traced", [False, True])
def test_a_row_gets_the_slots_of_another_and_keeps_its_own(cache, traced):
    source, start = np.array([2, 2, 0, 3], np.int32), np.array([0, 4, 9, 5], np.int32)
    found = (jax.jit(followed) if traced else followed)(cache, jnp.asarray(source), jnp.asarray(start))
    wanted = by_hand(cache.stacked, source, start)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, found), wanted)


def test_no_row_is_gathered_whole_whose_slots_are_known(cache):
    given = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    program = jax.jit(followed).lower(cache, given, given).as_text()
    gathered = set(re.findall(r"stablehlo\.gather.*-> tensor<([^>]*)>", program))
    assert {"4x1x3x2x3xf32", "4x1x2x3x3xbf16", "4x1x3xi1"} <= {re.sub(r"^4x1x1x", "4x1x", each) for each in gathered}
    assert not {"4x1x12x2x3xf32", "4x1x2x12x3xbf16", "4x1x12xi1"} & gathered

"""Random heads, and cases that have the states they read."""

import dataclasses
import itertools

import jax
import numpy as np
from random_cases import LENGTH, SIZE, batch_axes, random_cases

from kljudge_jax.verification.features import feature_count
from kljudge_jax.verification.head import Head


def random_head(setup="DD-DT", target=16, draft=16, hidden=0, seed=0, pair=None):
    """A head with states of those sizes; an MLP with `hidden` units if that is not 0."""
    random = np.random.default_rng(seed)
    sizes = [feature_count(setup, target, draft), *([hidden] if hidden else []), 1]
    layers = tuple(
        (np.float32(random.normal(size=(i, o)) / i**0.5), np.float32(random.normal(size=o)))
        for i, o in itertools.pairwise(sizes)
    )
    mean, scale = np.float32(random.normal(size=sizes[0])), np.float32(random.uniform(0.5, 2, size=sizes[0]))
    return Head(mean, scale, layers, setup, pair)


def by_hand(head, features):
    """P(important) of features `[F]`, float64."""
    x = (features - np.float64(head.mean)) / np.float64(head.scale)
    for i, (kernel, bias) in enumerate(head.layers):
        x = (np.maximum(x, 0) if i else x) @ np.float64(kernel) + bias
    return 1 / (1 + np.exp(-x[0]))


def cases_with_states(seed, greedy, target=3, draft=2):
    """Random cases with states, garbage past each draft."""
    random, inputs = np.random.default_rng(seed), random_cases(seed, greedy)
    garbage = np.arange(LENGTH) >= np.asarray(inputs.draft_count)[:, None]
    states = [np.float32(random.normal(size=(SIZE, LENGTH, size))) for size in (draft, target)]
    for state in states:
        state[garbage] = random.choice([np.nan, np.inf, -np.inf])
    return dataclasses.replace(inputs, draft_hidden=states[0], target_hidden=states[1])


@jax.jit
def state_verdicts(rule, inputs):
    keys = jax.random.split(jax.random.key(0), SIZE)
    axes = dataclasses.replace(batch_axes(inputs), draft_hidden=0, target_hidden=0)
    return jax.vmap(rule, in_axes=(0, axes))(keys, inputs)

"""A branch that copies nothing of what passes through it."""

import re

import jax
import jax.numpy as jnp
import pytest

import kljudge_jax as kj
from kljudge_jax.generation import loop
from kljudge_jax.core.controller import Costs
from kljudge_jax.core.run_if import run_if
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.state import Settings


def test_an_adaptive_loop_copies_no_cache(pair):
    """Though its plain cycles are a loop in the loop, which both models' caches pass through."""
    batch, rule, adaptive = 3, kj.GreedyExact(), kj.Adaptive(maximum=4, cost="size")
    settings = Settings(kj.ModelDraft(), 4, 320, 8, False, adaptive)
    numbers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    prompts = jax.ShapeDtypeStruct((batch, 16), jnp.int32)
    models = pair.target, pair.draft
    state = loop.start.eval_shape(*models, prompts, numbers, keys, numbers, settings=settings)
    args = (*models, rule, Sampling.create(), jnp.asarray([5]), state, jnp.zeros(batch, bool), jnp.int32(9))
    given = Costs(jnp.ones(5), *map(jnp.float32, (0, 0)), jnp.int32(-1), jnp.asarray(True))
    lowered = loop.run_cycles.lower(*args, costs=given, settings=settings, rule=type(rule))
    program = lowered.compile().as_text()
    assert "f32[3,2,320,8]" in program
    assert not re.findall(r"= f32\[3,2,320,8\]\S* copy\(", program)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_branch_is_taken_where_it_is_wanted(wanted):
    number, pair = run_if(jnp.asarray(wanted), lambda carry: (carry[0] + 1, (2.0, carry[1][0])), (5, (0.0, 1.0)))
    assert (number, pair) == ((6, (2.0, 0.0)) if wanted else (5, (0.0, 1.0)))


def test_a_loop_with_passes_of_several_widths_copies_no_cache(pair):
    """With `lax.switch` in its place there were twelve copies."""
    batch, rule = 3, jax.tree.map(jnp.float32, kj.SpeculativeSampling())
    settings = Settings(kj.PromptLookup(), 2, 320, 8, False)
    shapes = jax.ShapeDtypeStruct((batch, 16), jnp.int32), *[jax.ShapeDtypeStruct((batch,), jnp.int32)] * 2
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    prompts, lengths, budget = shapes
    state = loop.start.eval_shape(pair.target, None, prompts, lengths, keys, budget, settings=settings)
    args = (pair.target, None, rule, Sampling.create(), jnp.asarray([5]), state, jnp.zeros(batch, bool), jnp.int32(9))
    program = loop.run_cycles.lower(*args, settings=settings, rule=type(rule)).compile().as_text()
    assert "f32[3,2,320,8]" in program
    assert not re.findall(r"= f32\[3,2,320,8\]\S* copy\(", program)

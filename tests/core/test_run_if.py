"""A branch that copies nothing of what passes through it."""

import re

import jax
import jax.numpy as jnp
import pytest

import kljudge_jax as kj
from kljudge_jax.core.run_if import run_if
from kljudge_jax.core.state import Shape, numbers
from kljudge_jax.generation import programs


def compiled(target, draft, rule, drafter, shape, costs=None):
    """The text of the loop of cycles over three rows."""
    batch = 3
    static = {"drafter": drafter, "shape": shape}
    rows, given = jax.ShapeDtypeStruct((batch,), jnp.int32), numbers(8, end_ids=[5], costs=costs)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    prompts = jax.ShapeDtypeStruct((batch, 16), jnp.int32)
    state = programs.start.eval_shape(target, draft, rule, prompts, rows, keys, given, **static)
    args = target, draft, rule, state, given, jnp.zeros(batch, bool), jnp.int32(9)
    return programs.run_cycles.lower(*args, **static).compile().as_text()


def test_an_adaptive_loop_copies_no_cache(pair):
    """Though its plain cycles and those with a draft are branches, which both models' caches pass through."""
    shape = Shape(4, 8, 320, controller=kj.Adaptive(maximum=4, cost="size"))
    program = compiled(pair.target, pair.draft, kj.GreedyExact(), kj.ModelDraft(), shape, jnp.ones(5))
    assert "f32[3,2,320,8]" in program
    assert not re.findall(r"= f32\[3,2,320,8\]\S* copy\(", program)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_branch_is_taken_where_it_is_wanted(wanted):
    number, pair = run_if(jnp.asarray(wanted), lambda carry: (carry[0] + 1, (2.0, carry[1][0])), (5, (0.0, 1.0)))
    assert (number, pair) == ((6, (2.0, 0.0)) if wanted else (5, (0.0, 1.0)))


def test_a_loop_with_passes_of_several_widths_copies_no_cache(pair):
    """With `lax.switch` in its place there were twelve copies."""
    program = compiled(pair.target, None, kj.GreedyExact(), kj.PromptLookup(), Shape(2, 8, 320))
    assert "f32[3,2,320,8]" in program
    assert not re.findall(r"= f32\[3,2,320,8\]\S* copy\(", program)

"""Reflective verification: the strict rule against logits of two views."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import KINDS, random_cases, verdicts

from kljudge_jax.errors import InputError
from kljudge_jax.verification import Reflective, SpeculativeSampling, VerifyInputs, describe_rules, parse_verifier

# The mixed logits of "holes" would exclude a token that the first view does not.
PLAIN = tuple(kind for kind in KINDS if kind not in ("holes", "one_hot_target"))


def reflected(seed, greedy):
    """Random inputs with a second view that differs from the first; and the inputs whose target is the mixture."""
    inputs = random_cases(seed, greedy, kinds=PLAIN)
    noise = np.random.default_rng(seed).normal(size=inputs.target_logits.shape)
    judged = Reflective(0.3).fuse(inputs.target_logits, inputs.target_logits + jnp.asarray(3 * noise, jnp.float32))
    mixed = dataclasses.replace(inputs, judged_logits=judged)
    return mixed, judged


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def reflective(keys, inputs):
    axes = VerifyInputs(0, 0, 0, 0, 0, 0, None, None, None, judged_logits=0)
    return jax.vmap(Reflective(0.3), in_axes=(0, axes))(keys, inputs)


def test_logits_are_mixed_by_weight():
    z, again = jnp.asarray([1.0, 2.0, -jnp.inf]), jnp.asarray([3.0, -jnp.inf, 0.0])
    np.testing.assert_allclose(Reflective(0.3).fuse(z[:1], again[:1]), [0.7 * 1 + 0.3 * 3], rtol=1e-6)
    np.testing.assert_array_equal(Reflective(0.0).fuse(z, again), z)
    np.testing.assert_array_equal(Reflective(0.5).fuse(z, again)[1:], [-np.inf, -np.inf])


@pytest.mark.parametrize("greedy", [True, False])
def test_it_is_the_strict_rule_against_the_mixture(greedy):
    inputs, judged = reflected(3, greedy)
    keys = jax.random.split(jax.random.key(0), judged.shape[0])
    result = reflective(keys, inputs)
    plain = random_cases(3, greedy, kinds=PLAIN)
    strict = verdicts(SpeculativeSampling(), dataclasses.replace(plain, target_logits=judged))
    np.testing.assert_array_equal(result.num_accepted, strict.num_accepted)
    np.testing.assert_array_equal(result.next_token, strict.next_token)
    # Relaxed is what the strict rule rejects on the first view alone, with the same draw.
    first = np.asarray(verdicts(SpeculativeSampling(), plain).num_accepted)
    accepted, relaxed = np.asarray(result.num_accepted), np.asarray(result.relaxed)
    longer = accepted > first
    assert longer.any() and (accepted < first).any()
    assert relaxed[longer, first[longer]].all() and not relaxed[~longer].any()


def test_without_a_second_view_it_is_the_strict_rule():
    for greedy in (True, False):
        inputs = random_cases(4, greedy)
        ours, strict = verdicts(Reflective(0.9), inputs), verdicts(SpeculativeSampling(), inputs)
        jax.tree.map(np.testing.assert_array_equal, ours, strict)


def test_its_prompt_is_text():
    assert parse_verifier("reflective:0.2,prompt=Sure?", greedy=True) == Reflective(0.2, "Sure?")
    for prompt in ("", "  ", 3, None):
        with pytest.raises(InputError, match="Reflective some text as its prompt"):
            Reflective(prompt=prompt)


@pytest.mark.parametrize(("weight", "mixed"), [(0.0, [2.0, -np.inf]), (1.0, [-np.inf, 1.0])])
def test_a_view_without_weight_excludes_nothing(weight, mixed):
    first, second = jnp.array([2.0, -jnp.inf]), jnp.array([-jnp.inf, 1.0])
    np.testing.assert_array_equal(Reflective(weight).fuse(first, second), mixed)


def test_its_usage_can_be_written_back():
    (row,) = [row for row in describe_rules() if row["spec"] == "reflective"]
    assert parse_verifier(row["usage"], True) == Reflective()
    assert parse_verifier('reflective:0.3,prompt="Hm, sure? "', True) == Reflective(0.3, "Hm, sure? ")

"""The regret budget: its ends, its edges, and what it remembers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import as_inputs, batch_axes, expected_lengths, never_shorter, random_cases

from kljudge_jax.verification import GreedyExact, RegretBudget


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def verdicts(rule, inputs, carry):
    axes = dataclasses.replace(batch_axes(inputs), carry=0)
    keys = jax.random.split(jax.random.key(0), carry.shape[0])
    return jax.vmap(rule, in_axes=(0, axes))(keys, dataclasses.replace(inputs, carry=carry))


@pytest.mark.parametrize("rule", [RegretBudget(0.0, 1e9, 100), RegretBudget(1e9, 1e9, 0)], ids=str)
def test_the_strict_ends_let_no_tie_pass(rule):
    inputs = random_cases(11, True)
    np.testing.assert_array_equal(expected_lengths(rule, inputs), expected_lengths(GreedyExact(), inputs))


def test_a_spent_budget_is_strict_and_one_that_is_not_lets_a_tie_pass():
    level = np.zeros((1, 2, 2))
    inputs = as_inputs([[1]], [1], level[:, :1], level, level[:, :1], level, True)
    for spent, kept in ((0.0, 1), (0.999, 1), (1.0, 0), (2.0, 0)):
        result = verdicts(RegretBudget(1.0, 0.0), inputs, jnp.array([spent], jnp.float32))
        assert int(result.num_accepted[0]) == kept and float(result.carry[0]) == np.float32(spent)


def test_the_edges_pass():
    """A regret of the gate for the share that it saves, and of all that is left of the budget."""
    target = np.array([[[2.0, 1.0], [2.0, 1.0], [0.0, 0.0]]])
    inputs = as_inputs([[0, 1]], [2], target[:, :2], target, target[:, :2], target, True)
    for gate, budget, kept in ((2.0, 1.0, 2), (1.99, 1.0, 1), (2.0, 0.99, 1)):
        result = verdicts(RegretBudget(budget, gate), inputs, jnp.zeros(1))
        assert int(result.num_accepted[0]) == kept
        assert float(result.carry[0]) == (1.0 if kept == 2 else 0.0)
        assert expected_lengths(RegretBudget(budget, gate), inputs)[0] == kept


def test_accepts_more_as_it_is_relaxed():
    assert never_shorter([RegretBudget(budget, 100.0, 100) for budget in (0.0, 0.5, 2.0, 100.0)], True)
    assert never_shorter([RegretBudget(100.0, gate, 100) for gate in (0.0, 0.5, 2.0, 100.0)], True)
    assert never_shorter([RegretBudget(100.0, 100.0, mismatches) for mismatches in (0, 1, 2, 9)], True)


def test_a_token_that_the_target_excludes_never_passes():
    target = np.array([[[0.0, -np.inf], [0.0, 0.0]]])
    inputs = as_inputs([[1]], [1], np.zeros((1, 1, 2)), target, np.zeros((1, 1, 2)), target, True)
    for most in (1e30, np.inf):
        result = verdicts(RegretBudget(most, most, 100), inputs, jnp.zeros(1))
        assert int(result.num_accepted[0]) == 0 and float(result.carry[0]) == 0


def test_a_new_answer_has_spent_nothing():
    rule = RegretBudget(1.0, 1.0)
    assert rule.init_carry().shape == () and rule.init_carry() == 0

"""A rule with a memory of its answer: the same answers alone, in a batch, after a refill, in a cache that grew, and
streamed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import PROMPTS, answer, compilations, forced, tokens_of

import kljudge_jax as kj
from kljudge_jax import core
from kljudge_jax.generation import run_shape

GATE, MISMATCHES = 6.0, 2
RULE = kj.RegretBudget(2.5, GATE, MISMATCHES)
MANY = [np.random.default_rng(i).integers(1, 200, 1 + 2 * i) for i in range(7)]


def regrets(pair, prompt, tokens):
    """What each token of an answer cost, by scoring the whole again."""
    logits = forced(pair.target, [*prompt.tolist(), *tokens])[0][len(prompt) - 1 : -1]
    return logits.max(axis=-1) - logits[np.arange(len(tokens)), tokens]


def counts(out):
    return [(row.tokens, row.cycles, row.accepted, row.relaxed) for row in out.stats.rows]


def test_an_answer_spends_its_budget_and_no_more(pair):
    """Over all its cycles: where nothing more was relaxed, a larger budget still relaxes."""
    spent = {}
    for budget in (0.0, 1.0, 2.5, 1e6):
        out = answer(pair, kj.RegretBudget(budget, GATE, MISMATCHES))
        spent[budget] = []
        for prompt, tokens, origin in zip(PROMPTS, tokens_of(out), out.origin, strict=True):
            cost = regrets(pair, prompt, tokens)
            relaxed = np.array([each == "relaxed" for each in origin])
            assert (cost[~relaxed] < 1e-4).all() and cost[relaxed].sum() <= budget + 1e-4
            spent[budget].append(cost[relaxed].sum())
    assert max(spent[1e6]) > 2.5 > max(spent[2.5]) > 1.0 > max(spent[1.0]) > 0 == max(spent[0.0])
    assert tokens_of(answer(pair, kj.RegretBudget(0.0, GATE, MISMATCHES))) == tokens_of(answer(pair, None))


def test_a_row_is_the_same_alone_and_in_a_batch(pair):
    together = answer(pair, RULE, MANY)
    alone = [answer(pair, RULE, prompt) for prompt in MANY]
    assert tokens_of(together) == [tokens_of(out)[0] for out in alone]
    assert counts(together) == [counts(out)[0] for out in alone]
    assert together.stats.relaxed > 0


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.first_case
def test_a_prompt_that_waited_has_a_budget_of_its_own(pair, batch_size):
    budgets = [24, 9, 24, 3, 24, 17, 24]
    whole = answer(pair, RULE, MANY, max_new_tokens=budgets)
    queued = answer(pair, RULE, MANY, max_new_tokens=budgets, batch_size=batch_size)
    assert tokens_of(queued) == tokens_of(whole) and counts(queued) == counts(whole)
    assert sum(row.relaxed > 0 for row in queued.stats.rows) > 2


def test_a_cache_that_grows_keeps_what_was_spent(pair, monkeypatch):
    options = {"max_new_tokens": [40, 8, 30, 1], "draft_length": 3}
    monkeypatch.setattr(run_shape, "cache_buckets", lambda *args: args[-1:])
    whole = answer(pair, RULE, **options)
    monkeypatch.setattr(run_shape, "cache_buckets", lambda *args: (16, 24, 32, args[-1]))
    grown = answer(pair, RULE, **options)
    assert tokens_of(grown) == tokens_of(whole) and counts(grown) == counts(whole) and whole.stats.relaxed > 0


def test_a_stream_spends_what_generate_does(text_pair):
    options = {"verifier": RULE, "draft_length": 4, "max_new_tokens": 24}
    whole = kj.generate(text_pair, "text", **options)
    *_, last = kj.stream(text_pair, "text", **options)
    assert last.result.text == whole.text and counts(last.result) == counts(whole)
    assert whole.stats.relaxed > 0


def test_a_state_that_is_put_down_after_every_cycle_goes_on_where_it_was(pair):
    """As the state of a run of one's own, on the host in between."""
    lengths = jnp.array([len(prompt) for prompt in PROMPTS])
    prompts = jnp.array([np.pad(prompt, (0, 9 - len(prompt))) for prompt in PROMPTS], jnp.int32)
    keys = jax.random.split(jax.random.key(0), len(PROMPTS))
    models, drafter, given = core.Models(pair.target, pair.draft), kj.ModelDraft(), core.numbers(24)
    shape = core.Shape(4, 24)
    rule = jax.tree.map(jnp.asarray, RULE)

    @functools.partial(jax.jit, static_argnames="most")
    def decoded(models, state, most):
        return core.decode(models, drafter, rule, state, given, shape=shape, max_cycles=most)

    @jax.jit
    def begun(models, prompts, lengths, keys):
        return core.init(models, drafter, rule, prompts, lengths, keys, given, shape=shape)

    state = begun(models, prompts, lengths, keys)
    whole = decoded(models, state, None)
    for _ in range(24):
        state = decoded(models, jax.tree.map(lambda x: x if is_key(x) else jnp.asarray(np.asarray(x)), state), 1)
    np.testing.assert_array_equal(core.result(state).tokens, core.result(whole).tokens)
    np.testing.assert_array_equal(state.carry, whole.carry)
    assert (np.asarray(whole.carry) > 0).any()


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def test_a_budget_may_be_one_a_row(pair):
    budgets = np.float32([0.0, 0.5, 2.5, 1e6])
    out = answer(pair, kj.RegretBudget(budgets, GATE, MISMATCHES))
    for row, budget in enumerate(budgets):
        one = answer(pair, kj.RegretBudget(float(budget), GATE, MISMATCHES))
        assert tokens_of(one)[row] == tokens_of(out)[row]
    assert len({tuple(row) for row in map(tuple, counts(out))}) > 1


def test_other_budgets_compile_nothing(pair):
    answer(pair, RULE)
    with compilations() as found:
        answer(pair, kj.RegretBudget(7.0, 1.0, 3))
    assert not found


def test_a_temperature_is_refused(pair):
    with pytest.raises(kj.InputError, match="RegretBudget needs temperature 0"):
        answer(pair, RULE, temperature=0.5, key=jax.random.key(0))

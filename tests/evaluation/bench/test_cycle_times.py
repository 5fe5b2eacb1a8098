"""The parts that a bench times are those of a cycle: one after another they give what a cycle gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_heads import headed_pair
from tiny_pairs import DRAFT_LENGTH, PROMPTS, tiny_pair

import kljudge_jax as kj
from kljudge_jax.core.cycle import cycle
from kljudge_jax.core.protocols import Models
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.evaluation.bench import cycle_times
from kljudge_jax.generation.run import Run


def started(rule, temperature=0.0):
    sampling = Sampling.create(temperature)
    return Run(tiny_pair(), PROMPTS, rule, DRAFT_LENGTH, kj.ModelDraft(), 40, sampling, (), jax.random.key(1), False)


@pytest.fixture(scope="module")
def run():
    return started("exact")


def done(probe, repetitions):
    """What the probe's last repetition gave, without what it updated in place."""
    return probe.run(probe.make(), repetitions)[1]


@pytest.mark.parametrize(
    ("rule", "temperature"), [("exact", 0.0), pytest.param("kseq:2", 1.0, marks=pytest.mark.slow), (None, 0.0)]
)
def test_parts_repeated_give_what_one_cycle_gives(rule, temperature):
    run, repetitions = started(rule, temperature), 3
    state = run.state
    models = Models(run.pair.target, run.draft)
    one = functools.partial(cycle, drafter=run.drafter, shape=run.shape)
    whole = jax.jit(one)(models, rule=run.verifier, state=state, numbers=run.numbers())
    proposal, scores = cycle_times._scored(run)
    if run.drafter is not None:
        np.testing.assert_array_equal(done(cycle_times.draft(run), repetitions).draft.tokens, proposal.draft.tokens)
    outcome = done(cycle_times.verdicts(run), repetitions)
    for probe in (cycle_times.commit(run), cycle_times.whole_cycle(run)):
        after = done(probe, repetitions)
        for name in ("sequence", "length", "count", "origin", "running", "cycles"):
            np.testing.assert_array_equal(getattr(after, name), getattr(whole, name), name)
    assert (np.asarray(whole.count) >= np.asarray(outcome.accepted)).all() and whole.count.any()
    assert scores.logits.shape[1] == run.shape.draft_length + 1
    assert not state.length.is_deleted() and not state.cache.keys[0].is_deleted()


def test_a_pass_scores_as_many_positions_as_asked_for(run):
    for positions in (1, 3):
        scores = done(cycle_times.target_pass(run, positions), 2)
        rows = run.state.cache.length.shape[0]
        assert scores.logits.shape == (rows, positions, run.pair.target.config.vocab_size)
        # Token 0 after each prompt, at the place where the prompt's cache ends.
        cache = run.state.cache
        features, _ = run.pair.target(jnp.zeros((rows, 1), jnp.int32), cache)
        np.testing.assert_allclose(scores.logits[:, :1], run.pair.target.logits(features.hidden), rtol=1e-4, atol=1e-4)


def test_prompts_are_consumed_as_a_run_does(run):
    state = cycle_times.prompts(run).run(None, 2)[1]
    for ours, theirs in zip(*map(jax.tree.leaves, map(cycle_times._held, (state, run.state))), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert state.length.shape == run.state.length.shape


def test_the_parts_of_a_cycle_with_a_head_are_those_of_one():
    pair, sampling = headed_pair(), Sampling.create(0.0)
    run = Run(pair, PROMPTS, "exact", DRAFT_LENGTH, kj.ModelDraft(), 40, sampling, (), jax.random.key(1), False)
    models = Models(pair.target, pair.draft)
    whole = jax.jit(functools.partial(cycle, drafter=run.drafter, shape=run.shape))(
        models, rule=run.verifier, state=run.state, numbers=run.numbers()
    )
    observe = cycle_times.observe(run)
    remembered, cache = observe.run(observe.make(), 3)[0][1], whole.drafter.cache
    np.testing.assert_allclose(remembered.output, whole.drafter.output, rtol=1e-5, atol=1e-5)
    # Rolled back, to be timed again; what the target's states made of the draft's places is there.
    np.testing.assert_array_equal(remembered.cache.length, run.state.drafter.cache.length)
    for row, (start, end) in enumerate(zip(remembered.cache.length, cache.length, strict=True)):
        written = (row, slice(None), slice(int(start), int(end)))
        np.testing.assert_allclose(remembered.cache.keys[0][written], cache.keys[0][written], rtol=1e-5, atol=1e-5)
    # And `commit` leaves it out: a head's output is as it was.
    after = cycle_times.commit(run)
    np.testing.assert_array_equal(after.run(after.make(), 2)[0][1].output, run.state.drafter.output)
    np.testing.assert_array_equal(done(after, 2).sequence, whole.sequence)


def test_what_a_model_is_told_is_no_part_of_its_own(run):
    assert cycle_times.observe(run) is None

"""The parts of a cycle, each in a loop of its own on the device: the functions that the decoding loop is made of."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core import cycle
from kljudge_jax.core.protocols import Models
from kljudge_jax.core.rows import map_state, repeated
from kljudge_jax.core.state import LoopState, Shape
from kljudge_jax.evaluation.timing import Probe
from kljudge_jax.generation.run import Run
from kljudge_jax.models.flat_model import unflatten


def draft(run: Run) -> Probe:
    """One draft a row, the step that catches up with what was committed included."""

    def repeat(held, n):
        return _draft(*run.models, run.verifier, run.numbers(), _bare(run.state), held, np.int32(n), **run.static)

    return Probe(repeat, lambda: _copy(_held(run.state)))


def target_pass(run: Run, positions: int) -> Probe:
    """One target pass over a row's last token and `positions - 1` draft tokens, logits included."""
    rows = run.state.cache.length.shape[0]
    tokens = jnp.zeros((rows, positions), jnp.int32)
    count = jnp.full((rows,), positions - 1, jnp.int32)

    def repeat(cache, n):
        return _target_pass(run.models[0], tokens, count, cache, np.int32(n), scorer=run.shape.scorer)

    return Probe(repeat, lambda: _copy(run.state.cache))


def verdicts(run: Run) -> Probe:
    """The verdicts on a draft that is scored already."""
    proposal, scores = _scored(run)

    def repeat(_, n):
        return _verdicts(
            run.verifier, run.numbers(), _bare(run.state), proposal, scores, np.int32(n),
            shape=run.shape,
        )  # fmt: skip

    return Probe(repeat)


def commit(run: Run) -> Probe:
    """What follows a verdict: tokens, counts and caches of the state brought up to date."""
    proposal, scores = _scored(run)
    _, outcome = _verdicts(
        run.verifier, run.numbers(), _bare(run.state), proposal, scores, np.int32(1),
        shape=run.shape,
    )  # fmt: skip

    def repeat(held, n):
        return _commit(
            *run.models, run.numbers(), _bare(run.state), held, proposal, scores, outcome, np.int32(n),
            drafter=run.drafter, shape=run.shape,
        )  # fmt: skip

    return Probe(repeat, lambda: _copy(_held(run.state)))


def whole_cycle(run: Run) -> Probe:
    """The first cycle after the prompts, over and over: what a block of cycles is made of, without its dispatch."""
    # No end of text: a row that stops drafts nothing more.
    never = dataclasses.replace(run.numbers(), end_ids=jnp.full_like(run.eos, -1))

    def repeat(held, n):
        return _cycle(*run.models, run.verifier, never, _bare(run.state), held, np.int32(n), **run.static)

    return Probe(repeat, lambda: _copy(_held(run.state)))


def prompts(run: Run) -> Probe:
    """Storage allocated, and the prompts consumed by the models."""

    return Probe(lambda _, n: [run.start() for _ in range(n)], most=1)


@functools.partial(jax.jit, static_argnames=("drafter", "shape"), donate_argnames="held")
def _draft(target, draft, rule, numbers, state, held, repetitions, *, drafter, shape):
    models = Models(unflatten(target), unflatten(draft))

    def step(held, state):
        proposal, *held = cycle.propose(models, drafter, rule, _whole(state, held), numbers, shape=shape)
        return _rolled_back(held, state, shape), proposal

    return _repeated(step, held, state, repetitions)


@functools.partial(jax.jit, static_argnames="scorer", donate_argnames="cache")
def _target_pass(target, tokens, count, cache, repetitions, *, scorer):
    target, length = unflatten(target), cache.length

    def step(cache, given):
        tokens, count = given
        scores = scorer.score(target, cache, tokens[:, 0], tokens[:, 1:], count)
        return scores.cache.at_length(length), scores._replace(cache=None)

    return _repeated(step, cache, (tokens, count), repetitions)


@functools.partial(jax.jit, static_argnames="shape")
def _verdicts(rule, numbers, state, proposal, scores, repetitions, *, shape):

    def step(_, given):
        state, proposal, scores = given
        return (), cycle.verify(rule, numbers.sampling, state, proposal, scores, numbers, shape=shape)

    return _repeated(step, (), (state, proposal, scores), repetitions)


@functools.partial(jax.jit, static_argnames=("drafter", "shape"), donate_argnames="held")
def _commit(target, draft, numbers, state, held, proposal, scores, outcome, repetitions, *, drafter, shape):
    models = Models(unflatten(target), unflatten(draft))

    def step(held, given):
        state, proposal, scores, outcome = given
        scores = scores._replace(cache=held[0])
        after = cycle.commit(models, drafter, _whole(state, held), proposal, scores, outcome, numbers, shape=shape)
        return _rolled_back(_held(after), state, shape), _bare(after)

    return _repeated(step, held, (state, proposal, scores, outcome), repetitions)


@functools.partial(jax.jit, static_argnames=("drafter", "shape"), donate_argnames="held")
def _cycle(target, draft, rule, numbers, state, held, repetitions, *, drafter, shape):
    models = Models(unflatten(target), unflatten(draft))

    def step(held, state):
        after = cycle.cycle(models, drafter, rule, _whole(state, held), numbers, shape=shape)
        return _rolled_back(_held(after), state, shape), _bare(after)

    return _repeated(step, held, state, repetitions)


def _scored(run: Run):
    """A real proposal and its scores, by the programs that are timed."""
    one, held = np.int32(1), _copy(_held(run.state))
    _, proposal = _draft(*run.models, run.verifier, run.numbers(), _bare(run.state), held, one, **run.static)
    tokens = jnp.concatenate([proposal.last[:, None], proposal.draft.tokens], axis=1)
    cache = _copy(run.state.cache)
    _, scores = _target_pass(run.models[0], tokens, proposal.counts, cache, one, scorer=run.shape.scorer)
    return proposal, scores


def _repeated(step, carried, given, repetitions):
    """`carried, results = step(carried, given)`, so many times; the last `carried` and the last results.

    Both are returned to the host: what nobody reads XLA would not compute, and what is donated needs a place to go.
    `carried` is what a step updates in place. `given` is the same in every turn; XLA must not see that, or it would
    lift out of the loop what depends on nothing else.
    """
    shapes = jax.eval_shape(lambda *args: step(*args)[1], carried, given)
    results = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def turn(i, state):
        fenced, _ = jax.lax.optimization_barrier((given, i))
        return step(state[0], fenced)

    return jax.lax.fori_loop(0, repetitions, turn, (carried, results))


def _rolled_back(held, state: LoopState, shape: Shape):
    """Target's cache and drafter's state at what the state has committed, but for each row's last token."""
    length = repeated(state.length - 1, shape.scorer.drafts)
    return map_state(lambda cache: cache.at_length(length), lambda x: x, tuple(held))


def _held(state: LoopState):
    """What a cycle updates in place."""
    return state.cache, state.drafter


def _bare(state: LoopState) -> LoopState:
    return dataclasses.replace(state, cache=None, drafter=None)


def _whole(state: LoopState, held) -> LoopState:
    return dataclasses.replace(state, cache=held[0], drafter=held[1])


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)

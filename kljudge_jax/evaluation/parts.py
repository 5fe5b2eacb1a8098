"""The parts of a cycle, each in a loop of its own on the device: the functions that the decoding loop is made of."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.decoding import loop
from kljudge_jax.decoding.drafter import Caches, Models
from kljudge_jax.decoding.run import Run
from kljudge_jax.decoding.verify import judge_drafts
from kljudge_jax.evaluation.timing import Probe
from kljudge_jax.models.packed import unpack


def draft(run: Run) -> Probe:
    """One draft a row, the step that catches up with what was committed included."""

    def repeat(caches, n):
        return _draft(
            *run.models, run.verifier, run.sampling, run.eos, _bare(run.state), caches, np.int32(n),
            settings=run.settings, rule=type(run.verifier),
        )  # fmt: skip

    return Probe(repeat, lambda: _copy(run.state.caches))


def target_pass(run: Run, positions: int) -> Probe:
    """One target pass over a row's last token and `positions - 1` draft tokens, logits included."""
    rows = run.state.caches.target.length.shape[0]
    tokens = jnp.zeros((rows, positions), jnp.int32)
    count = jnp.full((rows,), positions - 1, jnp.int32)

    def repeat(cache, n):
        return _target_pass(run.models[0], tokens, count, cache, np.int32(n), scorer=run.settings.scorer)

    return Probe(repeat, lambda: _copy(run.state.caches.target))


def verdicts(run: Run) -> Probe:
    """The verdicts on a draft that is scored already."""
    proposal, scores = _scored(run)

    def repeat(_, n):
        return _verdicts(
            run.verifier, run.sampling, proposal, scores, np.int32(n), settings=run.settings, rule=type(run.verifier)
        )

    return Probe(repeat)


def commit(run: Run) -> Probe:
    """What follows a verdict: tokens, counts and caches of the state brought up to date."""
    proposal, scores = _scored(run)
    _, outcome = _verdicts(
        run.verifier, run.sampling, proposal, scores, np.int32(1), settings=run.settings, rule=type(run.verifier)
    )

    def repeat(caches, n):
        return _commit(_bare(run.state), caches, proposal.wanted, outcome, run.eos, np.int32(n), settings=run.settings)

    return Probe(repeat, lambda: _copy(run.state.caches))


def whole_cycle(run: Run) -> Probe:
    """The first cycle after the prompts, over and over: what a block of cycles is made of, without its dispatch."""
    # No end of text: a row that stops drafts nothing more.
    never = jnp.full_like(run.eos, -1)

    def repeat(caches, n):
        return _cycle(
            *run.models, run.verifier, run.sampling, never, _bare(run.state), caches, np.int32(n),
            settings=run.settings, rule=type(run.verifier),
        )  # fmt: skip

    return Probe(repeat, lambda: _copy(run.state.caches))


def prompts(run: Run) -> Probe:
    """Storage allocated, and the prompts consumed by the models."""

    return Probe(lambda _, n: [run.start() for _ in range(n)], most=1)


@functools.partial(jax.jit, static_argnames=("settings", "rule"), donate_argnames="caches")
def _draft(target, draft, verifier, sampling, eos, state, caches, repetitions, *, settings, rule):
    del rule  # as in `run_cycles`
    models = Models(unpack(target), unpack(draft))

    def step(caches, state):
        state = dataclasses.replace(state, caches=caches)
        proposal, caches = loop.propose(models, verifier, sampling, eos, state, settings)
        return _rolled_back(caches, state, settings), proposal

    return _repeated(step, caches, state, repetitions)


@functools.partial(jax.jit, static_argnames="scorer", donate_argnames="cache")
def _target_pass(target, tokens, count, cache, repetitions, *, scorer):
    target, length = unpack(target), cache.length

    def step(cache, given):
        tokens, count = given
        scores = scorer.score(target, cache, tokens[:, 0], tokens[:, 1:], count)
        return scores.cache.at_length(length), scores._replace(cache=None)

    return _repeated(step, cache, (tokens, count), repetitions)


@functools.partial(jax.jit, static_argnames=("settings", "rule"))
def _verdicts(verifier, sampling, proposal, scores, repetitions, *, settings, rule):
    del rule

    def step(_, given):
        proposal, scores = given
        return (), judge_drafts(
            verifier, sampling, proposal.draft, proposal.counts, proposal.keys, scores, settings=settings
        )

    return _repeated(step, (), (proposal, scores), repetitions)


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="caches")
def _commit(state, caches, wanted, outcome, eos, repetitions, *, settings):
    def step(caches, given):
        state, wanted, outcome = given
        after = loop.commit(state, caches, wanted, outcome, eos, settings)
        return _rolled_back(after.caches, state, settings), dataclasses.replace(after, caches=None)

    return _repeated(step, caches, (state, wanted, outcome), repetitions)


@functools.partial(jax.jit, static_argnames=("settings", "rule"), donate_argnames="caches")
def _cycle(target, draft, verifier, sampling, eos, state, caches, repetitions, *, settings, rule):
    del rule
    models = Models(unpack(target), unpack(draft))

    def step(caches, state):
        begun = dataclasses.replace(state, caches=caches)
        after = loop.cycle(models, verifier, sampling, eos, begun, settings)
        return _rolled_back(after.caches, state, settings), _bare(after)

    return _repeated(step, caches, state, repetitions)


def _scored(run: Run):
    """A real proposal and its scores, by the programs that are timed."""
    one = np.int32(1)
    _, proposal = _draft(
        *run.models, run.verifier, run.sampling, run.eos, _bare(run.state), _copy(run.state.caches), one,
        settings=run.settings, rule=type(run.verifier),
    )  # fmt: skip
    tokens = jnp.concatenate([proposal.last[:, None], proposal.draft.tokens], axis=1)
    cache = _copy(run.state.caches.target)
    _, scores = _target_pass(run.models[0], tokens, proposal.counts, cache, one, scorer=run.settings.scorer)
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


def _rolled_back(caches: Caches, state, settings) -> Caches:
    """Both caches at what the state has committed, but for each row's last token."""
    length = loop.per_draft(state.length - 1, settings)
    draft = None if caches.draft is None else caches.draft.at_length(length)
    return Caches(caches.target.at_length(length), draft)


def _bare(state):
    return dataclasses.replace(state, caches=None)


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)

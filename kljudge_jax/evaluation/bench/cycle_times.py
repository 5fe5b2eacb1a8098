"""The parts of a cycle, each in a loop of its own on the device: the functions that the decoding loop is made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core import cycle
from kljudge_jax.core.protocols import Drafter, Models, layers_of
from kljudge_jax.core.rows import map_state, repeated
from kljudge_jax.core.state import LoopState, Numbers, Shape
from kljudge_jax.evaluation.bench.timing import Probe
from kljudge_jax.generation.run import Run
from kljudge_jax.models.flat_model import unflatten
from kljudge_jax.verification import Verifier


def draft(run: Run) -> Probe:
    """One draft a row, the step that catches up with what was committed included."""
    return _probe(run, _propose, _bare(run.state))


def target_pass(run: Run, positions: int) -> Probe:
    """One target pass over a row's last token and `positions - 1` draft tokens, logits included."""
    rows = run.state.cache.length.shape[0]
    given = jnp.zeros((rows, positions), jnp.int32), jnp.full((rows,), positions - 1, jnp.int32)
    return _probe(run, _score, given)


def verdicts(run: Run) -> Probe:
    """The verdicts on a draft that is scored already."""
    return _probe(run, _verify, (_bare(run.state), *_scored(run)))


def observe(run: Run) -> Probe | None:
    """A drafter told of a target pass, where that takes weights; else it is a part of `commit`."""
    return _probe(run, _observe, _judged(run)) if _observes(run.drafter) else None


def commit(run: Run) -> Probe:
    """What follows a verdict: tokens, counts and caches of the state brought up to date, less what `observe` times."""
    return _probe(run, _commit, _judged(run))


def whole_cycle(run: Run) -> Probe:
    """The first cycle after the prompts, over and over: what a block of cycles is made of, without its dispatch."""
    # No end of text: a row that stops drafts nothing more.
    never = dataclasses.replace(run.numbers(), end_ids=jnp.full_like(run.eos, -1))
    return _probe(run, _cycle, _bare(run.state), never)


def prompts(run: Run) -> Probe:
    """Storage allocated, and the prompts consumed by the models."""

    return Probe(lambda _, n: [run.start() for _ in range(n)], most=1)


def _probe(run: Run, part: Callable, given: Any, numbers: Numbers | None = None) -> Probe:
    """A part of the run's cycle, repeated on `given`; its caches are copied for every sample."""
    numbers = run.numbers() if numbers is None else numbers

    def repeat(held, n):
        return _repeated(*run.models, run.verifier, numbers, held, given, np.int32(n), part=part, **run.static)

    return Probe(repeat, lambda: jax.tree.map(jnp.copy, _held(run.state)))


def _once(run: Run, part: Callable, given: Any):
    probe = _probe(run, part, given)
    return probe.run(probe.make(), 1)


def _scored(run: Run):
    """A real proposal and its scores, by the programs that are timed."""
    _, proposal = _once(run, _propose, _bare(run.state))
    tokens = jnp.concatenate([proposal.last[:, None], proposal.draft.tokens], axis=1)
    return proposal, _once(run, _score, (tokens, proposal.counts))[1]


def _judged(run: Run):
    """A real proposal, its scores and the verdicts on it, likewise."""
    scored = _scored(run)
    _, outcome = _once(run, _verify, (_bare(run.state), *scored))
    return _bare(run.state), *scored, outcome


def _observes(drafter: Drafter | None) -> bool:
    return hasattr(drafter, "observes")


class _Fixed(NamedTuple):
    """What a part is of: models, rule and numbers, and what is static."""

    models: Models
    rule: Verifier
    numbers: Numbers
    drafter: Drafter | None
    shape: Shape


# The parts: `held, given -> held, result`, where `held` is the target's cache and the drafter's state.


def _propose(of: _Fixed, held, state):
    proposal, *held = cycle.propose(of.models, of.drafter, of.rule, _whole(state, held), of.numbers, shape=of.shape)
    return _rolled_back(held, state, of.shape), proposal


def _score(of: _Fixed, held, given):
    tokens, count = given
    layers = layers_of(of.drafter)
    scores = of.shape.scorer.score(of.models.target, held[0], tokens[:, 0], tokens[:, 1:], count, layers)
    return (scores.cache.at_length(held[0].length), held[1]), scores._replace(cache=None)


def _verify(of: _Fixed, held, given):
    state, proposal, scores = given
    return held, cycle.verify(of.rule, of.numbers.sampling, state, proposal, scores, of.numbers, shape=of.shape)


def _observe(of: _Fixed, held, given):
    state, proposal, scores, outcome = given
    scores, state = scores._replace(cache=held[0]), _whole(state, held)
    after = cycle.told(of.models, of.drafter, state, proposal, scores, outcome, outcome.accepted + 1, of.shape)
    return _rolled_back(after, state, of.shape), None


def _commit(of: _Fixed, held, given):
    state, proposal, scores, outcome = given
    scores, state = scores._replace(cache=held[0]), _whole(state, held)
    drafter = None if _observes(of.drafter) else of.drafter
    after = cycle.commit(of.models, drafter, state, proposal, scores, outcome, of.numbers, shape=of.shape)
    return _rolled_back(_held(after), state, of.shape), _bare(after)


def _cycle(of: _Fixed, held, state):
    after = cycle.cycle(of.models, of.drafter, of.rule, _whole(state, held), of.numbers, shape=of.shape)
    return _rolled_back(_held(after), state, of.shape), _bare(after)


@functools.partial(jax.jit, static_argnames=("part", "drafter", "shape"), donate_argnames="held")
def _repeated(target, draft, rule, numbers, held, given, repetitions, *, part, drafter, shape):
    """`held, result = part(fixed, held, given)`, so many times; the last `held` and the last result.

    Both are returned to the host: what nobody reads XLA would not compute, and what is donated needs a place to go.
    `held` is what a part updates in place. `given` is the same in every turn; XLA must not see that, or it would
    lift out of the loop what depends on nothing else.
    """
    part = functools.partial(part, _Fixed(Models(unflatten(target), unflatten(draft)), rule, numbers, drafter, shape))
    shapes = jax.eval_shape(lambda *args: part(*args)[1], held, given)
    results = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def turn(i, state):
        fenced, _ = jax.lax.optimization_barrier((given, i))
        return part(state[0], fenced)

    return jax.lax.fori_loop(0, repetitions, turn, (held, results))


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

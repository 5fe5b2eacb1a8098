"""What a run does at its edges: of drafts, of buffers, of rows that failed, and where a state leaves a trace."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import VOCAB, Scalar, begin, enter, go_on, greedy_by_hand, keys, padded, rows_of
from jax.sharding import PartitionSpec
from tiny_pairs import tiny_pair

import kljudge_jax as kj
from kljudge_jax import core

PROMPTS = [[3, 1, 4], [1, 5]]
RULE = kj.GreedyExact()


@pytest.fixture(scope="module")
def model():
    return Scalar.random(0)


def begun(model, drafter, shape, budget=8):
    models, given = core.Models(model), core.numbers(budget)
    return models, given, begin(models, RULE, *padded(PROMPTS), keys(2), given, drafter=drafter, shape=shape)


@dataclasses.dataclass(frozen=True)
class Padding:
    """Proposes one token, and pads its draft with ids that are none, each row with others first."""

    pads: tuple[int, ...]
    uses_draft_model: ClassVar[bool] = False

    def init(self, models: Any, batch: int, slots: int) -> Any:
        return ()

    def observe(self, models: Any, state: Any, window: core.Window) -> Any:
        return state

    def propose(self, models, target_cache, state, context, request):
        rows, length = context.consumed.shape[0], request.draft_length
        at = jnp.arange(rows)[:, None] + jnp.arange(length - 1)[None]
        padding = jnp.asarray(self.pads, jnp.int32)[at % len(self.pads)]
        tokens = jnp.concatenate([jnp.full((rows, 1), 2, jnp.int32), padding], axis=1)
        return core.Draft(tokens, jnp.ones_like(context.consumed)), target_cache, state


def test_what_stands_after_a_draft_is_never_read(model):
    """Each id right after the draft of one row, and at the end of another's."""
    shape, drafter = core.Shape(3, 8), Padding((VOCAB, 2**31 - 1, -1))
    prompts = [*PROMPTS, [2, 7, 1]]
    models, given = core.Models(model), core.numbers(8)
    state = begin(models, RULE, *padded(prompts), keys(3), given, drafter=drafter, shape=shape)
    result = core.result(go_on(models, RULE, state, given, drafter=drafter, shape=shape))
    assert rows_of(result) == [greedy_by_hand(model, prompt, 8) for prompt in prompts]


def test_a_row_longer_than_its_sequence_waits_for_room(model):
    """However large the caches have grown."""
    shape = core.Shape(0, 8)
    models, given, state = begun(model, None, shape, budget=1)
    state = go_on(models, RULE, state, given, drafter=None, shape=shape)
    wide = core.Entries(jnp.ones((2, 7), jnp.int32), jnp.full(2, 7), keys(2), jnp.full(2, 8), jnp.arange(2))
    state = enter(models, RULE, state, wide, given, None, drafter=None, shape=shape)
    state = dataclasses.replace(state, cache=state.cache.resized(64))
    state = go_on(models, RULE, state, given, drafter=None, shape=shape)
    assert state.finish.tolist() == [core.SLOTS] * 2
    known = core.result(state)
    want = greedy_by_hand(model, [1] * 7, 8)
    assert all(row == want[: len(row)] for row in rows_of(known))


def test_a_draft_that_slept_catches_up_in_a_cache_of_few_slots():
    pair = tiny_pair(vocab_size=29, num_layers=1)
    prompts, lengths = padded(PROMPTS)
    shape = core.Shape(2, 4, controller=kj.Adaptive(maximum=2, cost="size"))
    models, given = core.Models(pair.target, pair.draft), core.numbers(4)

    @functools.partial(jax.jit, static_argnames=("drafter", "shape"))
    def run(models, drafter, shape):
        state = core.init(models, drafter, RULE, prompts, lengths, keys(2), given, shape=shape)
        return core.result(core.decode(models, drafter, RULE, state, given, shape=shape)).tokens

    plain = run(models._replace(draft=None), None, core.Shape(0, 4))
    np.testing.assert_array_equal(run(models, kj.ModelDraft(), shape), plain)


def test_a_state_made_outside_of_a_trace_may_be_donated(model):
    shape = core.Shape(0, 8, trace=True)
    models, given = core.Models(model), core.numbers(8)
    state = core.init(models, None, RULE, *padded(PROMPTS), keys(2), given, shape=shape)
    decode = jax.jit(lambda state: core.decode(models, None, RULE, state, given, shape=shape), donate_argnums=0)
    assert rows_of(core.result(decode(state))) == [greedy_by_hand(model, prompt, 8) for prompt in PROMPTS]


def test_a_whole_state_and_result_leave_shard_map(model):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, shape, given = PartitionSpec("data"), core.Shape(0, 8), core.numbers(8)
    prompts, lengths = padded(PROMPTS)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), rows, rows, rows), out_specs=rows)
    def run(model, prompts, lengths, keys):
        models = core.Models(model)
        state = core.init(models, None, RULE, prompts, lengths, keys, given, shape=shape)
        state = core.decode(models, None, RULE, state, given, shape=shape)
        return core.result(state), state.length

    result, length = run(model, prompts, lengths, keys(2))
    assert rows_of(result) == [greedy_by_hand(model, prompt, 8) for prompt in PROMPTS]
    assert length.tolist() == [11, 10]


def test_a_temperature_may_be_traced(model):
    shape = core.Shape(0, 8)
    prompts, lengths = padded(PROMPTS)

    @jax.jit
    def sampled(temperature):
        given, models, rule = core.numbers(8, temperature=temperature), core.Models(model), kj.SpeculativeSampling()
        state = core.init(models, None, rule, prompts, lengths, keys(2), given, shape=shape)
        return core.result(core.decode(models, None, rule, state, given, shape=shape))

    assert rows_of(sampled(jnp.float32(1e-4))) == [greedy_by_hand(model, prompt, 8) for prompt in PROMPTS]


@kj.register
@dataclasses.dataclass(frozen=True)
class Countdown:
    """Remembers a number that may be one a row."""

    start: float

    def init_carry(self):
        return jnp.asarray(self.start, jnp.float32)

    def __call__(self, key, inputs):
        verdict = kj.GreedyExact()(key, inputs)
        return dataclasses.replace(verdict, carry=inputs.carry - 1)


def test_what_a_rule_remembers_begins_with_its_own_rows_number(model):
    rule, shape = Countdown(jnp.array([10.0, 20.0])), core.Shape(0, 3)
    prompts, lengths = padded(PROMPTS)
    models, given = core.Models(model), core.numbers(3)
    # Outside of any trace, operation by operation.
    state = core.init(models, None, rule, prompts, lengths, keys(2), given, shape=shape)
    assert state.carry.tolist() == [10, 20]
    state = core.decode(models, None, rule, state, given, shape=shape)
    assert state.carry.tolist() == [7, 17]
    again = core.Entries(prompts, lengths, keys(2), jnp.full(2, 3), jnp.array([1, 0]))
    state = core.admit(models, None, rule, state, again, given, shape=shape, count=1)
    assert state.carry.tolist() == [7, 20]


def test_layers_that_are_no_tuple_are_refused(model):
    @dataclasses.dataclass(frozen=True)
    class Listed(Padding):
        layers = [1]  # noqa: RUF012 - that is what is refused

    with pytest.raises(kj.InputError, match=r"Listed.layers are \[1\]: give a tuple"):
        begun(model, Listed((0,)), core.Shape(3, 8))

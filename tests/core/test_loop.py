"""The loop on the device: its storage, its blocks, and what it shows a rule."""

import dataclasses

import chex
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import (
    DRAFT_LENGTH,
    NEVER,
    PROMPTS,
    answer,
    compilations,
    forced,
    greedy_by_hand,
    in_bfloat16,
    rounded,
    tiny_pair,
    tokens_of,
)

import kljudge_jax as kj
from kljudge_jax.core.cycle import cycle
from kljudge_jax.core.protocols import Models
from kljudge_jax.core.state import Shape, numbers
from kljudge_jax.generation import programs
from kljudge_jax.models.linear import is_matrix
from kljudge_jax.models.transformer import parameters


def started(pair, budget=40, capacity=64):
    """A state as `generate` makes it, and a function that runs a block of greedy exact cycles."""
    none = np.zeros(len(PROMPTS), bool)
    rule = kj.GreedyExact()
    static = {"drafter": kj.ModelDraft(), "shape": Shape(DRAFT_LENGTH, 64, capacity)}
    prompts = np.stack([np.pad(prompt, (0, 16 - len(prompt))) for prompt in PROMPTS]).astype(np.int32)
    lengths = np.array([len(prompt) for prompt in PROMPTS], np.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(PROMPTS)))
    budgets = np.full(len(PROMPTS), budget, np.int32)
    given = numbers(budgets, end_ids=[NEVER])
    models = pair.target, pair.draft, rule
    state = programs.start(*models, prompts, lengths, keys, given, **static)

    def run(state, cycles, halted=none):
        return programs.run_cycles(*models, state, given, halted, np.int32(cycles), **static)

    return state, run


def test_a_cache_filled_to_its_last_slot_is_never_written_past(pair, monkeypatch):
    """`dynamic_update_slice` would shift such a write over good slots in silence."""
    capacities, start = [], programs.start

    def watched(*args, shape, **options):
        capacities.append(shape.capacity)
        if shape.capacity > 64:
            raise MemoryError
        return start(*args, shape=shape, **options)

    monkeypatch.setattr(programs, "start", watched)
    budget = 64 - max(len(prompt) for prompt in PROMPTS) - DRAFT_LENGTH - 1
    equal = dataclasses.replace(pair, draft=pair.target)  # whose drafts are as long as they can be
    for exact in (answer(pair, "exact", max_new_tokens=budget), answer(equal, "exact", max_new_tokens=budget)):
        assert tokens_of(exact) == tokens_of(answer(pair, None, max_new_tokens=budget))
    assert tokens_of(exact)[2][-4:] == greedy_by_hand(pair.target, [*PROMPTS[2], *exact.tokens[2][:-4]], 4)
    assert set(capacities) == {64}
    with pytest.raises(MemoryError):
        answer(pair, "exact", max_new_tokens=budget + 1)
    assert capacities[-1] == 128


def test_blocks_of_cycles_add_up_to_the_whole(pair):
    state, run = started(pair)
    begun = jax.eval_shape(lambda state: state, state)
    ended = run(state, 1000)
    chex.assert_trees_all_equal_shapes_and_dtypes(begun, jax.eval_shape(lambda state: state, ended))
    chex.assert_tree_all_finite([ended.cache, ended.drafter])
    whole = jax.device_get(ended)
    state, run = started(pair)
    blocks = 0
    while state.running.any():
        state = run(state, 3)
        blocks += 1
        assert state.cycles.max() == min(3 * blocks, whole.cycles.max())
    assert blocks > 2
    for name, counts in (("sequence", whole.length), ("origin", whole.count)):
        for row, other, count in zip(getattr(state, name), getattr(whole, name), counts, strict=True):
            np.testing.assert_array_equal(row[:count], other[:count])
    np.testing.assert_array_equal(whole.length, [len(prompt) + 40 for prompt in PROMPTS])
    np.testing.assert_array_equal(state.cycles, whole.cycles)
    np.testing.assert_array_equal(whole.count, 40)
    np.testing.assert_array_equal(
        whole.cache.length,
        [len(prompt) - 1 + count for prompt, count in zip(PROMPTS, whole.count, strict=True)],
    )


def test_no_cycle_runs_when_none_is_asked_for_or_every_row_has_stopped(pair):
    state, run = started(pair, budget=5)
    state = run(state, 0)
    assert not state.cycles.any() and state.running.all()
    state = run(state, 1000)
    cycles = np.asarray(state.cycles)
    assert not state.running.any()
    np.testing.assert_array_equal(run(state, 1000).cycles, cycles)


def test_rows_that_the_host_halts_stay_as_they_are(pair):
    state, run = started(pair)
    state = run(state, 2)
    count, cycles = np.asarray(state.count), np.asarray(state.cycles)
    state = run(state, 1000, np.array([False, True, False, True]))
    assert not state.running.any()
    np.testing.assert_array_equal(state.count, [40, count[1], 40, count[3]])
    np.testing.assert_array_equal(np.asarray(state.cycles)[[1, 3]], cycles[[1, 3]])


def test_the_state_is_donated_and_a_second_run_compiles_nothing(pair):
    state, run = started(pair)
    run(state, 1000)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.cache.keys + state.drafter.values))
    other = tiny_pair(seed=7)
    with compilations() as compiled:
        state, run = started(other, budget=33)
        run(state, 7)
    assert not compiled


@pytest.mark.parametrize("change", [lambda model: model, in_bfloat16, rounded], ids=["float32", "bfloat16", "int8"])
def test_compiled_cycles_copy_no_weight_and_no_cache(pair, change, monkeypatch):
    """On the backend at hand, whichever that is."""
    changed = dataclasses.replace(pair, target=change(pair.target), draft=change(pair.draft))
    state, run = started(changed)
    monkeypatch.setattr(programs, "run_cycles", programs.run_cycles.lower)
    program = run(state, 1000).compile().as_text()
    caches = hlo.shapes(jax.tree.leaves((state.cache.keys, state.drafter.values)))
    weights = hlo.shapes([x for name, x in parameters(changed.target).items() if is_matrix(name)])
    given = hlo.entry_parameters(program)
    assert {*caches, *weights} <= {*given.values()}
    assert not hlo.copies(program, {*caches, *weights})
    held = {number for number, shape in given.items() if shape in caches}
    assert (
        len(held) == len(jax.tree.leaves((state.cache, state.drafter))) - 2
    )  # all keys and values, but not the two lengths
    assert held <= hlo.aliased(program)


def test_copies_are_found_in_every_form_that_they_take():
    """In the text of a program, as XLA writes it for a CPU, a GPU and a TPU."""
    program = """HloModule f, input_output_alias={ {0}: (1, {}, may-alias), {1, 2}: (3, {}, must-alias) }

%fused_computation.1 (param_0.1: f32[8,16]) -> f32[16,8] {
  %param_0.1 = f32[8,16]{1,0} parameter(0)
  ROOT %transpose.3 = f32[16,8]{1,0} transpose(%param_0.1), dimensions={1,0}
}

%fused_computation.2 (param_0.2: f32[8,16]) -> f32[8,16] {
  %param_0.2 = f32[8,16]{1,0} parameter(0)
  ROOT %add.1 = f32[8,16]{1,0} add(%param_0.2, %param_0.2)
}

ENTRY %main (a: f32[8,16], b: bf16[4,2]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = bf16[4,2]{1,0:T(8,128)} parameter(1)
  %copy.1 = f32[8,16]{0,1} copy(%a)
  %copy-start.2 = (bf16[4,2]{1,0}, bf16[4,2]{1,0}, u32[]) copy-start(%b)
  %copy.3 = f32[3]{0} copy(%c)
  %copy_fusion = f32[16,8]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation.1
  %loop_add_fusion = f32[8,16]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation.2
  ROOT %add.2 = f32[8,16]{1,0} add(%a, %loop_add_fusion)
}
"""
    found = hlo.copies(program, {("f32", (8, 16)), ("bf16", (4, 2))})
    assert [line.split(" ")[0] for line in found] == ["%transpose.3", "%copy.1", "%copy-start.2", "%copy_fusion"]
    assert hlo.entry_parameters(program) == {0: ("f32", (8, 16)), 1: ("bf16", (4, 2))}
    assert hlo.aliased(program) == {1, 3}


@kj.register
@dataclasses.dataclass(frozen=True)
class SignOfStates:
    """Accepts a draft token by a sign of the states after it: a rule as one would write it."""

    bias: float
    needs = frozenset({"draft_hidden", "target_hidden"})

    def __call__(self, key, inputs):
        real = jnp.arange(inputs.draft_tokens.shape[0]) < inputs.draft_count
        signs = inputs.draft_hidden[:, 0] + inputs.target_hidden[:, 1] > self.bias
        kept = jnp.sum(jnp.cumprod(real & signs))
        token = jnp.argmax(inputs.target_logits[kept]).astype(jnp.int32)
        return kj.Verdict(kept.astype(jnp.int32), token, real & signs)


def by_hand(pair, prompt, steps, bias):
    """What `SignOfStates` commits, from scores of whole sequences."""
    sequence, origin = list(prompt), []
    while len(origin) < steps:
        draft = greedy_by_hand(pair.draft, sequence, DRAFT_LENGTH)[: steps - len(origin) - 1]
        logits, target = forced(pair.target, sequence + draft)
        _, states = forced(pair.draft, sequence + draft)
        after = slice(len(sequence), None)
        signs = states[after, 0] + target[after, 1] > bias
        kept = int(np.cumprod(signs).sum())
        sequence += [*draft[:kept], int(logits[len(sequence) - 1 + kept].argmax())]
        origin += ["relaxed"] * kept + ["target"]
    return sequence[len(prompt) :], origin


def test_a_rule_of_ones_own_sees_the_states_after_each_draft_token(pair):
    out = answer(pair, SignOfStates(-2.0))
    for row, prompt in enumerate(PROMPTS):
        tokens, origin = by_hand(pair, prompt, 24, -2.0)
        assert (tokens_of(out)[row], out.origin[row]) == (tokens, origin)
    assert 0.2 < out.stats.draft_acceptance_rate < 0.9


def test_states_that_no_rule_needs_are_not_there(pair):
    seen = []

    class Curious(kj.GreedyExact):
        def __call__(self, key, inputs):
            seen.append((inputs.draft_hidden, inputs.target_hidden))
            return super().__call__(key, inputs)

    state, _ = started(pair)
    shape, given = Shape(DRAFT_LENGTH, 64, 64), numbers(40)
    models = Models(pair.target, pair.draft)
    jax.eval_shape(lambda state: cycle(models, kj.ModelDraft(), Curious(), state, given, shape=shape), state)
    assert seen == [(None, None)]

"""Foreign plugs, written against the protocols alone, end to end: an EAGLE-like head, and a model of one sequence."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from foreign import (
    Diary,
    Head,
    PerShard,
    Scalar,
    begin,
    enter,
    go_on,
    greedy_by_hand,
    keys,
    padded,
    rows_of,
    teacher_forced,
)
from jax.sharding import Mesh, PartitionSpec
from tiny_pairs import NEVER, VOCAB_SIZE, tiny_model, tokens_of
from tiny_pairs import greedy_by_hand as greedy_of_ours

import kljudge_jax as kj
from kljudge_jax.models.transformer import parameters

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9], [2, 7]]
WAITING = [[8, 8, 1, 0, 4, 2], [11]]
NEW = 16
TARGET = Scalar.random(0)
HEAD = Head()
MODELS = kj.core.Models(TARGET, HEAD.parameters(1, TARGET.parameters["embedding"], TARGET.parameters["head"]))
EXACT = kj.GreedyExact()
DATA = PartitionSpec("data")


def shape(one_by_one=False, **options):
    return kj.core.Shape(3, NEW, prefill=kj.core.Prefill(4, one_by_one), **options)


@functools.cache
def own_answer(prompt):
    return greedy_by_hand(TARGET, prompt, NEW)


def own_answers(prompts):
    return [own_answer(tuple(prompt)) for prompt in prompts]


def check_diary(state, prompts):
    """What a head was told is the target's own features, at each position of the answer but the last, once."""
    diary = jax.tree.map(np.asarray, state.drafter["diary"])
    for row, prompt in enumerate(prompts):
        length = int(state.length[row])
        sequence = np.asarray(state.sequence)[row, :length]
        np.testing.assert_array_equal(diary["times"][row], np.arange(Diary().room) < length - 1)
        told = {name: values[row, : length - 1] for name, values in diary.items()}
        np.testing.assert_array_equal(told["token"], sequence[:-1])
        np.testing.assert_array_equal(told["next"], sequence[1:])
        np.testing.assert_array_equal(told["prompt"], np.arange(length - 1) < len(prompt) - 1)
        _, streams = teacher_forced(TARGET, sequence[:-1], HEAD.layers)
        np.testing.assert_allclose(told["features"], streams, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "one_by_one",
    [pytest.param(False, id="in chunks", marks=pytest.mark.slow), pytest.param(True, id="one by one")],
)
def test_a_head_writes_the_targets_own_tokens_and_sees_what_the_target_computes(one_by_one):
    static = {"drafter": Diary(HEAD), "shape": shape(one_by_one)}
    numbers = kj.core.numbers([NEW] * 4)
    state = begin(MODELS, EXACT, *padded(PROMPTS, 12), keys(4), numbers, **static)
    check_diary(state, PROMPTS)
    for _ in range(3):
        state = go_on(MODELS, EXACT, state, numbers, 1, **static)
        check_diary(state, PROMPTS)
    state = go_on(MODELS, EXACT, state, numbers, **static)
    check_diary(state, PROMPTS)
    assert rows_of(kj.core.result(state)) == own_answers(PROMPTS)
    assert not state.finish.any()
    committed = np.asarray(state.cycle_committed)
    kept = {int(n) - 1 for row, cycles in enumerate(state.cycles) for n in committed[row, :cycles]}
    assert len(kept) > 1, "no draft was accepted in part"

    # Two rows are refilled, out of order; the others stay as they are.
    places = [2, 0]
    prompts, lengths = padded((WAITING * 2)[:4], 12)
    rows = jnp.asarray([*places, 0, 0])
    entries = kj.core.Entries(prompts, lengths, keys(4, seed=1), jnp.full((4,), NEW), rows)
    before = state
    state = enter(MODELS, EXACT, state, entries, numbers, 2, **static)
    now = list(PROMPTS)
    for place, prompt in zip(places, WAITING, strict=True):
        now[place] = prompt
    check_diary(state, now)
    np.testing.assert_array_equal(state.running, [True, False, True, False])
    state = go_on(MODELS, EXACT, state, numbers, **static)
    check_diary(state, now)
    assert rows_of(kj.core.result(state)) == own_answers(now)
    for row in (1, 3):
        assert before.cycles[row] == state.cycles[row]


def test_prompts_of_any_width_and_budgets_of_any_size_fit():
    """A width that is no multiple of the chunk is padded; a budget larger than the room is cut to it."""
    static = {"drafter": Diary(HEAD), "shape": shape()}
    numbers = kj.core.numbers([NEW + 7] * 4)
    state = begin(MODELS, EXACT, *padded(PROMPTS, 9), keys(4), numbers, **static)
    check_diary(state, PROMPTS)
    entries = kj.core.Entries(*padded(WAITING * 2, 6), keys(4), jnp.full((4,), NEW + 7), jnp.arange(4))
    state = enter(MODELS, EXACT, state, entries, numbers, 1, **static)
    now = [WAITING[0], *PROMPTS[1:]]
    check_diary(state, now)
    state = go_on(MODELS, EXACT, state, numbers, **static)
    check_diary(state, now)
    assert rows_of(kj.core.result(state)) == own_answers(now)


def test_a_row_that_ends_at_its_end_of_text_is_told_of_what_is_in_it():
    end = own_answer(tuple(PROMPTS[0]))[5]
    static = {"drafter": Diary(HEAD), "shape": shape()}
    numbers = kj.core.numbers([NEW] * 4, end_ids=[end, 999])
    state = begin(MODELS, EXACT, *padded(PROMPTS, 12), keys(4), numbers, **static)
    state = go_on(MODELS, EXACT, state, numbers, **static)
    wanted = [answer[: answer.index(end) + 1] if end in answer else answer for answer in own_answers(PROMPTS)]
    assert rows_of(kj.core.result(state)) == wanted
    assert any(len(answer) < NEW for answer in wanted)
    check_diary(state, PROMPTS)


def test_a_head_samples_what_the_target_samples():
    """The head's own distribution is what its tokens are drawn from, so that the exact rule can trust it."""
    static = {"drafter": HEAD, "shape": shape(trace=True)}
    numbers = kj.core.numbers([2] * 512, temperature=1.0)
    prompts, lengths = jnp.tile(jnp.asarray([[3, 1]]), (512, 1)), jnp.full((512,), 2)
    found = []
    for seed in range(8):
        state = begin(MODELS, kj.SpeculativeSampling(), prompts, lengths, keys(512, seed), numbers, **static)
        state = go_on(MODELS, kj.SpeculativeSampling(), state, numbers, **static)
        found.append(np.asarray(kj.core.result(state).tokens)[:, 0])
    counts = np.bincount(np.concatenate(found), minlength=TARGET.vocab_size)
    expected = np.exp(np.asarray(jax.nn.log_softmax(teacher_forced(TARGET, [3, 1])[0][-1])))
    expected = expected * counts.sum()
    common = expected >= 5
    statistic = np.sum((counts - expected)[common] ** 2 / expected[common])
    rest = expected[~common].sum()
    statistic += (counts[~common].sum() - rest) ** 2 / rest
    assert scipy.stats.chi2.sf(statistic, common.sum()) > 1e-3


def test_generate_takes_a_head_and_a_model_of_somebody_else():
    ours = tiny_model(0)
    named = parameters(ours)
    table, head = named["embedding.table"], named["head.weight"].T
    pair = kj.ModelPair(ours, HEAD.parameters(1, table, head), eos=(NEVER,))
    prompts = [np.asarray(prompt) for prompt in PROMPTS]
    out = kj.generate(pair, prompts, verifier="exact", drafter=HEAD, draft_length=3, max_new_tokens=NEW, batch_size=2)
    assert tokens_of(out) == [greedy_of_ours(ours, prompt, NEW) for prompt in PROMPTS]
    assert out.stats.accepted > 0
    assert ours.vocab_size == VOCAB_SIZE

    pair = kj.ModelPair(TARGET, MODELS.draft, eos=(NEVER,))
    out = kj.generate(pair, prompts, verifier="exact", drafter=HEAD, draft_length=3, max_new_tokens=NEW, batch_size=3)
    assert tokens_of(out) == own_answers(PROMPTS)
    relaxed = kj.generate(pair, prompts, verifier="kl:5.0", drafter=HEAD, draft_length=3, max_new_tokens=NEW)
    assert relaxed.stats.relaxed > 0


@pytest.mark.parametrize("kind", [Scalar, pytest.param(PerShard, marks=pytest.mark.slow)])
def test_a_model_with_one_scalar_position_decodes_inside_shard_map(kind):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    target = kind(TARGET.parameters)
    models = kj.core.Models(target, MODELS.draft)
    # One prefill pass a row where a shard has one; the second kind knows nothing else.
    plan = shape(one_by_one=kind is PerShard)
    numbers = kj.core.numbers([NEW] * 4)
    split = kj.core.Numbers(PartitionSpec(), DATA, PartitionSpec(), PartitionSpec(), PartitionSpec())

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), DATA, DATA, DATA, split), out_specs=DATA, check_vma=True
    )
    def answers(models, prompts, lengths, keys, numbers):
        state = kj.core.init(models, HEAD, EXACT, prompts, lengths, keys, numbers, shape=plan)
        state = kj.core.decode(models, HEAD, EXACT, state, numbers, shape=plan)
        result = kj.core.result(state)
        # Each shard refills its own row with its own prompt backwards.
        again = jnp.where(
            jnp.arange(prompts.shape[1])[None] < lengths[:, None],
            jnp.take_along_axis(prompts, (lengths[:, None] - 1 - jnp.arange(prompts.shape[1])[None]), axis=1),
            0,
        )
        entries = kj.core.Entries(again, lengths, keys, numbers.budget, jnp.zeros_like(lengths))
        state = kj.core.admit(models, HEAD, EXACT, state, entries, numbers, shape=plan)
        second = kj.core.result(kj.core.decode(models, HEAD, EXACT, state, numbers, shape=plan))
        return result.tokens, second.tokens

    first, second = answers(models, *padded(PROMPTS, 12), keys(4), numbers)
    chex.assert_shape([first, second], (4, NEW))
    assert np.asarray(first).tolist() == own_answers(PROMPTS)
    assert np.asarray(second).tolist() == own_answers([prompt[::-1] for prompt in PROMPTS])

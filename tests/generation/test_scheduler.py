"""Prompts that wait for a slot: answers are those of each prompt alone, and slots are kept busy."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import DRAFT_LENGTH, answer, compilations, tiny_pair, tokens_of, with_parameters

import kljudge_jax as kj
from kljudge_jax.core.loop import Entries
from kljudge_jax.core.state import Shape, numbers
from kljudge_jax.errors import InputError
from kljudge_jax.generation import programs, stats
from kljudge_jax.generation.results import Generation
from kljudge_jax.generation.scheduler import Scheduler

_random = np.random.default_rng(0)
MANY = [_random.integers(1, 200, n) for n in (3, 1, 9, 2, 14, 5, 2, 16, 1, 7, 3)]
SLOTS = 3
BUDGETS = [5, 24, 1, 9, 1, 30, 2, 24, 17, 3, 11]
SAMPLING = {"temperature": 1.0, "top_k": 9, "top_p": 0.9}
UNSURE = kj.Adaptive(DRAFT_LENGTH, DRAFT_LENGTH, confidence=0.3, cost="size")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def pair():
    """A pair some of whose answers end early, the first cycle included."""
    pair = tiny_pair(3, noise=0.1)
    firsts = [int(row[0]) for row in answer(pair, None, MANY).tokens]
    return dataclasses.replace(pair, eos=(firsts[4],))


def same(out, alone):
    """Whether two calls gave the same answers in all but their times."""
    assert tokens_of(out) == tokens_of(alone)
    assert (out.text, out.origin) == (alone.text, alone.origin)
    for row, other in zip(out.stats.rows, alone.stats.rows, strict=True):
        counts = ("tokens", "cycles", "drafted", "accepted", "relaxed", "finish", "failed")
        assert [getattr(row, name) for name in counts] == [getattr(other, name) for name in counts]
    return True


def one_by_one(pair, rule, key=None, max_new_tokens=None, **options):
    """Every prompt of `MANY` decoded alone."""
    key = jax.random.key(0) if key is None else key
    most = max_new_tokens or [24] * len(MANY)
    outs = [
        answer(pair, rule, prompt, key=jax.random.fold_in(key, i)[None], max_new_tokens=most[i], **options)
        for i, prompt in enumerate(MANY)
    ]
    counts = stats.pool([out.stats.rows[0] for out in outs])
    joined = {name: [getattr(out, name)[0] for out in outs] for name in ("text", "tokens", "origin")}
    return Generation(**joined, stats=counts)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("exact", {}),
        ("kl:0.5", SAMPLING),
        pytest.param(kj.KSequential(drafts=3), SAMPLING, marks=slow),
        pytest.param(kj.MultiPathBlock(drafts=3), SAMPLING, marks=slow),
        pytest.param(None, {}, marks=slow),
        pytest.param("kl:2.0", {}, marks=slow),
        pytest.param("kl:0.5", SAMPLING | {"draft_length": UNSURE}, marks=slow),
        pytest.param("exact", {"drafter": "lookup:2"}, marks=slow),
    ],
    ids=lambda value: str(value)[:24],
)
def test_answers_are_those_of_each_prompt_alone(pair, rule, options):
    options = {"key": jax.random.key(5), "max_new_tokens": BUDGETS, **options}
    queued = answer(pair, rule, MANY, batch_size=SLOTS, **options)
    assert same(queued, one_by_one(pair, rule, **options))
    finishes = {row.finish for row in queued.stats.rows}
    assert "length" in finishes and ("eos" in finishes or rule is not None)


def test_one_slot_and_more_slots_than_prompts_do(pair):
    alone = one_by_one(pair, "exact")
    for batch_size in (1, 11, 40):
        assert same(answer(pair, "exact", MANY, batch_size=batch_size), alone)


def test_an_eos_in_the_first_cycle_frees_the_slot(pair):
    out = answer(pair, "exact", MANY, batch_size=SLOTS)
    assert out.stats.rows[4].tokens == 1 and out.stats.rows[4].finish == "eos"


@pytest.mark.slow
def test_stops_cut_waiting_prompts_like_others(text_pair):
    prompts = [np.frombuffer(f"text {i}".encode(), np.uint8).astype(np.int32) for i in range(9)]
    free = answer(text_pair, "kl:4.0", prompts, max_new_tokens=40)
    stop = [free.text[7][5:7], free.text[2][:2]]
    whole = answer(text_pair, "kl:4.0", prompts, max_new_tokens=40, stop=stop, trace=True)
    queued = answer(text_pair, "kl:4.0", prompts, max_new_tokens=40, stop=stop, trace=True, batch_size=SLOTS)
    assert same(queued, whole)
    assert {"stop", "length"} <= {row.finish for row in queued.stats.rows}
    assert queued.cycles == whole.cycles
    for name in ("kl", "logprobs"):
        for ours, theirs in zip(getattr(queued, name), getattr(whole, name), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_prompts_that_begin_alike_keep_what_their_slot_holds(pair):
    few_shot = np.random.default_rng(4).integers(1, 200, 150)  # longer than a chunk of prefill
    prompts = [np.append(few_shot, more) for more in ([3, 1], [4, 1, 5], [9], [2, 6, 5, 3], [5, 8])]
    budgets = [2, 9, 12, 5, 8]
    pair = dataclasses.replace(pair, eos=(999,))
    queued = answer(pair, "exact", prompts, max_new_tokens=budgets, batch_size=2)
    for prompt, tokens, budget in zip(prompts, tokens_of(queued), budgets, strict=True):
        logits = kj.score(pair.target, np.append(prompt, tokens)[None])[0][0]
        assert tokens == logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist()
        assert len(tokens) == budget


def test_a_row_that_failed_spoils_nothing_of_the_next(pair):
    clean = answer(pair, "exact", MANY, batch_size=SLOTS)
    bad = next(int(t) for t in clean.tokens[1][2:] if all(t not in prompt for prompt in MANY))

    def spoil(name, x):
        if name == "embedding.table":
            x[bad] = np.nan
        return x

    broken = dataclasses.replace(pair, target=with_parameters(pair.target, spoil))
    out = answer(broken, "exact", MANY, batch_size=SLOTS)
    assert same(out, one_by_one(broken, "exact"))
    assert 0 < out.stats.failed < len(MANY)


def test_a_second_call_compiles_nothing_whatever_its_prompts(pair):
    answer(pair, kj.KLJudge(0.1), MANY, batch_size=SLOTS)
    with compilations() as compiled:
        answer(pair, kj.KLJudge(0.5), MANY[::-1][:7], batch_size=SLOTS, max_new_tokens=40)
    assert not compiled


def test_any_number_of_new_prompts_is_one_program(pair, monkeypatch):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(programs.refill.__wrapped__, n=1)
    once = jax.jit(traced, static_argnames=("drafter", "shape"), donate_argnames="state")
    sizes = set()

    def watched(target, draft, rule, state, entries, numbers, count, *args, **options):
        sizes.add(int(count))
        return once(target, draft, rule, state, entries, numbers, count, *args, **options)

    monkeypatch.setattr(programs, "refill", watched)
    out = answer(pair, "exact", MANY, batch_size=SLOTS, max_new_tokens=[2, 2, 5, 9, 2, 2, 2, 8, 3, 2, 2])
    assert len(sizes) > 1 and len(out.tokens) == len(MANY)


def test_new_prompts_are_written_in_place(pair):
    batch, capacity = 3, 320
    rule = kj.GreedyExact()
    static = {"drafter": kj.ModelDraft(), "shape": Shape(2, 8, capacity)}
    rows, given = jax.ShapeDtypeStruct((batch,), jnp.int32), numbers(8)
    prompts, keys = jax.ShapeDtypeStruct((batch, 16), jnp.int32), jax.random.split(jax.random.key(0), batch)
    begun = pair.target, pair.draft, rule
    state = programs.start.eval_shape(*begun, prompts, rows, keys, given, **static)
    entries = Entries(prompts, rows, keys, rows, rows)
    program = programs.refill.lower(*begun, state, entries, given, jnp.int32(2), jnp.int32(0), **static).compile()
    assert f"f32[{batch},2,{capacity},8]" in program.as_text()
    assert not re.findall(rf"= f32\[{batch},2,{capacity},8\]\S* copy\(", program.as_text())


def test_slots_are_kept_busy(pair):
    pair = dataclasses.replace(pair, eos=(999,))
    budgets = [1 + 23 * (i % 4 == 0) for i in range(len(MANY))]
    whole = answer(pair, None, MANY, max_new_tokens=budgets)
    assert whole.stats.slot_cycles == len(MANY) * 24
    assert whole.stats.slot_occupancy == sum(budgets) / (len(MANY) * 24)
    queued = answer(pair, None, MANY * 8, max_new_tokens=budgets * 8, batch_size=SLOTS)
    assert queued.stats.slot_occupancy > 0.9
    assert queued.stats.cycles == 8 * sum(budgets)


def test_the_seconds_of_rows_add_up(pair):
    out = answer(pair, "exact", MANY, batch_size=SLOTS)
    assert sum(row.own_seconds for row in out.stats.rows) == pytest.approx(out.stats.seconds)
    assert all(0 < row.own_seconds < row.seconds <= out.stats.seconds for row in out.stats.rows)
    assert sum(row.slot_cycles for row in out.stats.rows) == pytest.approx(out.stats.slot_cycles)
    assert out.stats.slot_cycles % SLOTS == 0 and out.stats.cycles <= out.stats.slot_cycles
    assert out.stats.prefill_seconds < out.stats.seconds


def test_answers_are_told_as_they_end(pair):
    told, seen = {}, []
    out = answer(pair, "kl:4.0", MANY, batch_size=SLOTS, answered=told.__setitem__, progress=seen.append, trace=True)
    assert sorted(told) == list(range(len(MANY))) != list(told)
    for i, one in told.items():
        assert tokens_of(one) == [tokens_of(out)[i]] and one.origin == [out.origin[i]]
        assert one.stats.rows == (out.stats.rows[i],) and one.stats.tokens == out.stats.rows[i].tokens
        assert one.stats.seconds == out.stats.rows[i].seconds and one.cycles == [out.cycles[i]]
    assert [p.finished for p in seen] == sorted(p.finished for p in seen) and seen[-1].finished == len(MANY)
    assert seen[-1].tokens == out.stats.tokens and seen[-1].seconds == out.stats.seconds


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "4"])
def test_a_batch_size_that_is_none_is_refused(pair, batch_size):
    with pytest.raises(InputError, match="batch_size must be a whole number from 1 on, or None"):
        answer(pair, None, MANY, batch_size=batch_size)


def test_the_queue_by_hand():
    scheduler = Scheduler(prompts=5, slots=2)
    scheduler.record_prefill([0, 1], 1.0, 7.0)
    scheduler.record_block(np.array([3, 1]), 8.0, 0.0)  # prompt 0 ran 3 cycles, prompt 1 one
    assert scheduler.times(1) == {
        "seconds": 9.0,
        "prefill_seconds": 1.0,
        "compile_seconds": 7.0,
        "own_seconds": 0.5 + 8.0 / 4,
        "slot_cycles": 6 / 4,
    }
    scheduler.release(1)
    assert scheduler.occupied() == [(0, 0)] and scheduler.waiting == 3
    assert scheduler.admit() == [(1, 2)] and scheduler.admit() == []
    scheduler.record_prefill([2], 1.0, 0.0)
    scheduler.record_block(np.array([5, 2]), 4.0, 0.0)
    assert scheduler.times(2) | {"seconds": 5.0, "own_seconds": 1.0 + 4.0 / 2, "slot_cycles": 2.0} == scheduler.times(2)
    scheduler.release(0), scheduler.release(1)
    assert scheduler.admit() == [(0, 3), (1, 4)] and scheduler.waiting == 0
    scheduler.release(1)
    assert scheduler.admit() == [] and scheduler.occupied() == [(0, 3)]
    assert (scheduler.seconds, scheduler.prefill_seconds, scheduler.compile_seconds) == (14.0, 2.0, 7.0)

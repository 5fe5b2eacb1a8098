"""Caches that grow with the answers: the same tokens, and attention over no more than the bucket."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from spread_pairs import spread
from tiny_pairs import NEVER, PROMPTS, answer, compilations, tiny_pair, tokens_of, with_parameters

import kljudge_jax as kj
from kljudge_jax.core.loop import UNBOUNDED
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.state import LoopState
from kljudge_jax.generation import buckets, programs, run_shape
from kljudge_jax.generation.buckets import cache_buckets
from kljudge_jax.generation.run import Run
from kljudge_jax.models import cache as cache_room
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.shapes import count_parameters, shape_config
from kljudge_jax.models.transformer import abstract

STEPS = (24, 40)
TOKENS = 50


@pytest.fixture(scope="module", autouse=True)
def xla():
    """XLA's attention, as on a GPU. Programs of other tests are not shared: the vocabulary is of another size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_room, "is_native", lambda *_: False)
        yield


@pytest.fixture(scope="module")
def pair():
    return tiny_pair(vocab_size=67)


@pytest.fixture
def small(monkeypatch):
    """Buckets that a short answer outgrows; the sizes of cache that blocks of cycles had, in their order."""
    seen, run_cycles = [], programs.run_cycles

    def watched(*args, **options):
        state = next(arg for arg in args if isinstance(arg, LoopState))
        seen.append(state.cache.slots)
        return run_cycles(*args, **options)

    monkeypatch.setattr(programs, "run_cycles", watched)
    monkeypatch.setattr(run_shape, "cache_buckets", lambda *args: (*STEPS, args[-1]))
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {"verifier": "exact"},
        pytest.param({"verifier": kj.KSequential(2), "temperature": 1.0}, marks=pytest.mark.slow),
        pytest.param({"verifier": None}, marks=pytest.mark.slow),
        pytest.param({"verifier": "typical", "temperature": 1.0, "drafter": "lookup:2"}, marks=pytest.mark.slow),
        pytest.param({"verifier": "exact", "drafter": kj.SelfDraft(1)}, marks=pytest.mark.slow),
        pytest.param({"verifier": "exact", "draft_length": kj.Adaptive(3)}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_answers_are_those_of_a_whole_cache(pair, small, monkeypatch, options):
    options = {"max_new_tokens": [TOKENS, 8, 30, 1], "draft_length": 3} | options
    grown = answer(pair, prompts=PROMPTS, **options)
    assert set(small) > {*STEPS}
    with monkeypatch.context() as patch:
        patch.setattr(run_shape, "cache_buckets", lambda *args: args[-1:])
        assert tokens_of(grown) == tokens_of(answer(pair, prompts=PROMPTS, **options))


@pytest.mark.slow
def test_a_cache_shrinks_when_the_longest_answer_has_ended_and_grows_again(pair, small, monkeypatch):
    prompts, budgets = PROMPTS * 2, [TOKENS, 4, 4, TOKENS - 20, 4, 4, TOKENS, 20]
    out = answer(pair, "exact", prompts, max_new_tokens=budgets, batch_size=2, draft_length=3)
    assert any(a > b for a, b in itertools.pairwise(small))
    monkeypatch.setattr(run_shape, "cache_buckets", lambda *args: args[-1:])
    assert tokens_of(out) == tokens_of(answer(pair, "exact", prompts, max_new_tokens=budgets, draft_length=3))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,tensor=2"])
def test_caches_grow_on_a_mesh(pair, small, mesh):
    options = {"max_new_tokens": [TOKENS, 8, 30, 1], "draft_length": 3}
    alone = tokens_of(answer(pair, "exact", **options))
    small.clear()
    whole = spread(pair, mesh)
    assert tokens_of(answer(whole, "exact", **options)) == alone
    assert set(small) > {*STEPS}
    with compilations() as compiled:
        answer(whole, "exact", **options)
    assert not compiled


def test_a_model_that_returns_nan_late_ends_its_own_answer_alone(pair, small):
    sound = answer(pair, None, max_new_tokens=TOKENS)
    late = tokens_of(sound)[0][45]

    def spoil(name, x):
        if name == "embedding.table":
            x[late] = np.nan
        return x

    broken = with_parameters(pair.target, spoil)
    out = kj.generate(kj.ModelPair(broken, None, eos=(NEVER,)), PROMPTS, verifier=None, max_new_tokens=TOKENS)
    for got, wanted in zip(tokens_of(out), tokens_of(sound), strict=True):
        end = wanted.index(late) + 1 if late in wanted else len(wanted)
        assert got == wanted[:end]


def test_a_call_compiles_a_program_for_each_bucket_that_it_needs_and_nothing_the_second_time(pair, small):
    for tokens, sizes in ((8, {STEPS[0]}), (TOKENS, {*STEPS, 64})):
        small.clear()
        answer(pair, "exact", draft_length=3, max_new_tokens=tokens)
        assert {*small} == sizes
        with compilations() as compiled:
            answer(pair, "exact", draft_length=3, max_new_tokens=tokens)
        assert not compiled


def test_scores_are_products_over_the_bucket(pair, small, monkeypatch):
    run_ = Run(pair, PROMPTS, "exact", 3, kj.ModelDraft(), TOKENS, Sampling.create(), (), None, False)
    assert run_.shape.capacity > STEPS[-1]
    monkeypatch.undo()
    given = (*run_.models, run_.verifier, run_.state, run_.numbers(), np.zeros(len(PROMPTS), bool), np.int32(9))
    text = programs.run_cycles.lower(*given, np.int32(UNBOUNDED), **run_.static).compile().as_text()
    assert not re.findall(rf"\[[\d,]*\b{run_.shape.capacity},8\]", text)
    products = [line for line in text.splitlines() if " dot(" in line and "bgrtd,bgsd->bgrts/" in line]
    assert len(products) >= 2 * 3  # in two layers: the draft's first step, its others, and the target's pass
    assert {re.search(r"= f32\[[\d,]*,(\d+)\]", line)[1] for line in products} == {str(STEPS[0])}


@pytest.mark.parametrize("slots", [3, 5, 8])
def test_a_resized_cache_keeps_its_slots(slots):
    config = tiny_pair(vocab_size=67).target.config
    empty = KVCache.create(config, 2, 5)
    cache = KVCache(tuple(k + 1 for k in empty.keys), tuple(v + 2 for v in empty.values), jnp.array([1, 3]))
    new = cache.resized(slots)
    assert new.slots == slots and cache.keys[0].is_deleted()
    kept = min(slots, 5)
    for stored, value in ((new.keys, 1), (new.values, 2)):
        for layer in stored:
            np.testing.assert_array_equal(layer[:, :, :kept], value)
            np.testing.assert_array_equal(layer[:, :, kept:], 0)
    np.testing.assert_array_equal(new.length, [1, 3])


def test_a_step_is_one_that_is_felt(monkeypatch):
    monkeypatch.setattr(buckets, "bytes_read", lambda model: 2 * count_parameters(model.config))
    target, draft = (abstract(shape_config(name)) for name in ("llama-3.1-8b", "llama-3.2-1b"))
    one, many = (cache_buckets(target, draft, rows, 8192) for rows in (1, 32))
    assert many == (256, 512, 1024, 2048, 4096, 8192)
    assert one == (512, 1024, 2048, 4096, 8192)
    assert cache_buckets(target, draft, 32, 1088) == (256, 512, 1088)
    assert cache_buckets(target, None, 1, 64) == (64,)


def test_native_attention_needs_no_steps(pair, monkeypatch):
    monkeypatch.setattr(cache_room, "is_native", lambda *_: True)
    assert cache_buckets(pair.target, pair.draft, 4, 8192) == (8192,)


def test_on_a_tpu_caches_grow_up_to_where_attention_reads_what_is_written(monkeypatch):
    monkeypatch.setattr(buckets, "bytes_read", lambda model: 2 * count_parameters(model.config))
    storage = Storage(jnp.bfloat16, platform="tpu")
    target, draft = (abstract(shape_config(name), storage) for name in ("llama-3.1-8b", "llama-3.2-1b"))
    assert cache_buckets(target, draft, 32, 32768) == (256, 512, 1024, 2048, 32768)
    assert cache_buckets(target, draft, 32, 3072) == (256, 512, 1024, 2048, 3072)

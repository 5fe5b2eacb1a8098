"""Caches of integers: what they lose, what they take, and that nobody else sees the difference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spread_pairs import spread
from tiny_pairs import PROMPTS, answer, tiny_config, tokens_of, with_parameters

import kljudge_jax as kj
from kljudge_jax.generation.memory_plan import Model, Workload, plan_memory
from kljudge_jax.models.int8_cache import Int8Cache, _quantized
from kljudge_jax.models.transformer import assemble, parameters


def cached_in_8_bits(model):
    return assemble(model.config, parameters(model), dataclasses.replace(model.storage, cache_bits=8))


@pytest.fixture(scope="module")
def eight(pair):
    return dataclasses.replace(pair, target=cached_in_8_bits(pair.target), draft=cached_in_8_bits(pair.draft))


def test_a_number_is_kept_to_half_a_step_of_its_row():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 5, 8)), jnp.float32) * 7
    x = x.at[0, 0, 0].set(0.0).at[1, 1, 2].set(jnp.arange(8, dtype=jnp.float32) * 1e-12)
    integers, scale = _quantized(x)
    assert integers.dtype == jnp.int8 and scale.shape == (3, 2, 5, 1)
    assert (np.abs(integers.astype(jnp.float32) * scale - x) <= 0.5001 * scale).all() and (
        np.abs(integers) <= 127
    ).all()
    assert np.isnan(_quantized(x.at[2, 1, 4, 3].set(jnp.nan))[1][2, 1, 4, 0])
    assert np.isnan(_quantized(x.at[2, 1, 4, 3].set(jnp.inf))[1]).sum() == 1


def test_logits_are_near_those_of_a_whole_cache(pair, eight):
    tokens = np.random.default_rng(1).integers(1, 257, (2, 12)).astype(np.int32)
    ours, theirs = (np.asarray(kj.score(model, tokens)[0]) for model in (eight.target, pair.target))
    assert 0 < np.abs(ours - theirs).max() < 0.1 * theirs.std()


@pytest.mark.parametrize(
    "options",
    [
        {"verifier": "exact"},
        pytest.param({"verifier": "exact", "batch_size": 2}, marks=pytest.mark.slow),
        {"verifier": "exact", "drafter": kj.SelfDraft(1)},
        pytest.param({"verifier": "exact", "drafter": kj.PromptLookup(2)}, marks=pytest.mark.slow),
        pytest.param({"verifier": "exact", "draft_length": kj.Adaptive(maximum=2, cost=0.1)}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_exact_decoding_is_plain_decoding(eight, options):
    """A token is stored and read alike whether it came alone or with others."""
    out = answer(eight, **options)
    assert tokens_of(out) == tokens_of(answer(eight, None))
    assert out.stats.accepted > 0


@pytest.mark.slow
def test_several_drafts_go_on_from_the_one_that_was_followed(eight):
    equal = dataclasses.replace(eight, draft=eight.target)
    out = answer(equal, kj.KSequential(2), temperature=0.7, draft_length=2)
    assert out.stats.accepted == out.stats.drafted > 0


def test_a_value_that_is_no_number_ends_its_own_answer_alone(eight):
    sound = tokens_of(answer(eight, None))
    late = sound[0][9]

    def spoil(name, x):
        if name == "embedding.table":
            x[late] = np.nan
        return x

    broken = dataclasses.replace(eight, target=with_parameters(eight.target, spoil))
    for got, wanted in zip(tokens_of(answer(broken, None)), sound, strict=True):
        assert got == (wanted[: wanted.index(late) + 1] if late in wanted else wanted)


def test_it_takes_a_byte_a_number_and_four_a_head_and_position(eight):
    cache = eight.target.init_cache(3, 64)
    assert isinstance(cache, Int8Cache) and (cache.slots, cache.rollback) == (64, None)
    held = sum(x.nbytes for x in jax.tree.leaves(cache)) - cache.length.nbytes
    config = tiny_config()
    assert held == 2 * config.num_layers * 3 * config.num_kv_heads * 64 * (config.head_dim + 4)
    plan = plan_memory(Model.of(eight.target), None, Workload(batch=3, capacity=64))
    assert plan.caches == held


@pytest.mark.slow
def test_it_lies_on_a_mesh_as_any_other(eight):
    alone = tokens_of(answer(eight, "exact"))
    assert tokens_of(answer(spread(eight, "data=2,tensor=2"), "exact")) == alone
    assert tokens_of(answer(spread(eight, "data=2"), "exact", PROMPTS * 2, batch_size=4)) == alone * 2


def test_it_is_asked_for_by_one_option():
    pair = kj.ModelPair.embedded(cache_bits=8)
    assert pair.precision == "float32, int8 cache"
    with pytest.raises(kj.InputError, match="cache_bits is 8 or None, not 4"):
        kj.ModelPair.embedded(cache_bits=4)

"""A head's costs are those of what its steps read, and its lengths adapt."""

import itertools

import jax
import numpy as np
import pytest
from spread_pairs import cycle_memory, start_memory
from tiny_heads import IDS, echoing_head, headed_pair, on_mesh
from tiny_pairs import PROMPTS, rounded, tiny_model, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.generation import memory_plan
from kljudge_jax.generation.arguments import drafter_for
from kljudge_jax.generation.costs import bytes_read, draft_cost, drafter_reads
from kljudge_jax.generation.memory_plan import Model, Workload, plan_memory
from kljudge_jax.models.leaves import precision
from kljudge_jax.models.shapes import count_parameters

# Of `tiny_config`: hidden size, inner size of the MLP, query heads and kv heads times their dimension.
H, INNER, QUERIES, KEYS = 16, 24, 32, 16
LAYER = 2 * H * (QUERIES + 2 * KEYS) + QUERIES * H + 3 * H * INNER + 3 * H
FC, ROWS, NORM = H * 3 * H, len(IDS) * H, H


@pytest.fixture(scope="module")
def pair():
    return headed_pair()


def read(pair, length):
    drafter = drafter_for(pair, kj.ModelDraft())
    return sum(times * bytes_read(weights) for weights, times in drafter_reads(pair, drafter, length)) / 4


def test_a_cycle_reads_the_parts_of_a_head_as_often_as_they_run(pair):
    assert read(pair, 0) == FC + LAYER
    assert read(pair, 1) == FC + LAYER + ROWS + NORM
    assert read(pair, 5) == FC + 5 * (LAYER + ROWS + NORM)
    parts = FC + LAYER + ROWS + NORM
    assert count_parameters(pair.draft.config) == parts and bytes_read(pair.draft) == 4 * (parts + len(IDS))
    target = bytes_read(pair.target) / 4
    cost = (LAYER + ROWS + NORM) / (target + FC + LAYER)
    assert draft_cost(pair, drafter_for(pair, kj.ModelDraft())) == pytest.approx(cost)


def test_a_table_of_its_own_is_gathered_from(pair):
    other = headed_pair(own_embedding=True)
    for length in (0, 3):
        assert read(other, length) == read(pair, length)
    assert bytes_read(other.draft) == bytes_read(pair.draft)
    assert count_parameters(other.draft.config) == count_parameters(pair.draft.config) + 257 * H


def test_a_models_costs_are_as_before():
    pair = tiny_pair()
    assert draft_cost(pair, kj.ModelDraft()) == 1.0
    assert draft_cost(pair, kj.PromptLookup()) == 0.0
    assert read(pair, 3) == 3 * bytes_read(pair.draft) / 4


def test_a_report_names_the_head(pair):
    assert precision(pair.draft) == f"float32, EAGLE-3 over layers 0, 1, 2, {len(IDS)} of 257 tokens"
    assert pair.precision == f"float32, draft {precision(pair.draft)}"
    assert precision(rounded(pair.target)) == "int8 (float32)"


@pytest.mark.parametrize("cost", ["size", "measured", 0.05])
def test_an_adaptive_length_is_lossless_and_drafts(pair, cost):
    asked = {"max_new_tokens": 40}
    plain = kj.generate(pair, PROMPTS, verifier=None, **asked)
    length = kj.Adaptive(maximum=4, cost=cost)
    out = kj.generate(pair, PROMPTS, verifier="exact", draft_length=length, **asked)
    assert tokens_of(out) == tokens_of(plain)
    assert out.stats.accepted > 0 and out.stats.drafted > out.stats.accepted


@pytest.mark.parametrize("own_embedding", [False, True])
def test_a_plan_of_memory_is_what_a_run_holds(own_embedding):
    pair = headed_pair(own_embedding=own_embedding)
    out = Model.of(pair.target), Model.of(pair.draft)
    workload = Workload(batch=4, prompt_tokens=16, max_new_tokens=40, draft_length=4)
    plan = plan_memory(*out, workload)
    assert plan.draft_weights == sum(leaf.nbytes for leaf in jax.tree.leaves(pair.draft))
    held = [model.init_cache(4, workload.slots) for model in (pair.target, pair.draft)]
    assert plan.caches == sum(side.nbytes for cache in held for side in (*cache.keys, *cache.values))
    without = plan_memory(out[0], None, workload)
    states = 2 * 3 * 4 * 4 * H  # of three layers, once alone and once side by side, of four rows, float32
    assert plan.prefill == without.prefill + 16 * states
    assert plan.cycle == without.cycle + 5 * states


@pytest.mark.parametrize("mesh", [None, pytest.param("data=2,tensor=2", marks=pytest.mark.slow)])
def test_a_plan_is_no_less_than_what_xla_takes(mesh):
    target = tiny_model(vocab_size=4096, num_heads=8, num_kv_heads=4)
    pair = kj.ModelPair(target, echoing_head(target, np.arange(1024)), eos=(999,))
    if mesh is not None:
        pair = on_mesh(pair, mesh)
    workload = Workload(batch=16, prompt_tokens=16, max_new_tokens=64, draft_length=4)
    prompts = [[1] * 16] * 16
    programs = cycle_memory(pair, "kl:1.0", prompts, 4, 64), start_memory(pair, "kl:1.0", prompts, 4, 64)
    plan = plan_memory(Model.of(pair.target), Model.of(pair.draft), workload)
    assert max(programs) <= plan.total <= 2 * max(programs), (plan, programs)


def test_a_run_with_a_head_is_refused_where_it_does_not_fit(pair, monkeypatch):
    monkeypatch.setattr(memory_plan, "usable_memory", lambda mesh: 400_000)
    with pytest.raises(kj.InputError, match=r"at a batch of 64, .* a batch of \d+ fits"):
        kj.generate(pair, [[1] * 8] * 64, verifier="exact", draft_length=4, max_new_tokens=24)


def test_an_echo_is_what_the_tests_take_it_for(pair):
    out = kj.generate(pair, PROMPTS, verifier="exact", draft_length=4, max_new_tokens=40)
    for tokens, row in zip(tokens_of(out), out.stats.rows, strict=True):
        repeats = sum(a == b for a, b in itertools.pairwise(tokens))
        assert row.accepted <= repeats
    assert np.sum(out.stats.accepted) > 4

"""Pairs of three families on meshes: the tokens of one device, and nothing large sent between the devices."""

import math
import re

import jax
import numpy as np
import pytest
from hlo import collectives
from spread_pairs import FAMILIES, PROMPTS, VOCAB_SIZE, cycle_program, family_pair, refill_program, spread
from tiny_pairs import tokens_of

import kljudge_jax as kj
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.generation.run import Run
from kljudge_jax.generation.score import PREFILL_CHUNK
from kljudge_jax.parallel import placement
from kljudge_jax.parallel.mesh import parse_mesh

MESHES = ("data=8", "data=4,tensor=2", "data=2,tensor=4", "tensor=8")
slow = pytest.mark.slow
# Gemma's one kv head and its windows are the hardest to split, so that it goes on all of them. A plain run has one mesh
# of each kind: data alone, tensor alone, and both in uneven parts.
PLACED = [
    ("llama", "data=8"),
    ("gemma", "data=2,tensor=4"),
    ("qwen", "tensor=8"),
    *(pytest.param("gemma", mesh, marks=slow) for mesh in MESHES if mesh != "data=2,tensor=4"),
    pytest.param("llama", "data=4,tensor=2", marks=slow),
    pytest.param("qwen", "data=2,tensor=4", marks=slow),
]
DECODING = {"draft_length": 3, "max_new_tokens": 16}
SLOTS = 64 + 3 + 1  # of a row's token ids, with what a cycle may write past the last


@pytest.fixture(scope="module")
def answers():
    """Answers of whole pairs, each made once."""
    known = {}

    def of(family, rule):
        if (family, rule) not in known:
            out = kj.generate(family_pair(family), PROMPTS, verifier=rule, **DECODING)
            known[family, rule] = tokens_of(out), out.origin
        return known[family, rule]

    return of


@pytest.mark.parametrize(("family", "mesh"), PLACED)
@pytest.mark.first_case
def test_a_pair_on_a_mesh_writes_what_it_writes_on_one_device(family, mesh, answers):
    pair = spread(family_pair(family), mesh)
    for rule in ("exact", "kl:1.0"):
        out = kj.generate(pair, PROMPTS, verifier=rule, **DECODING)
        assert (tokens_of(out), out.origin) == answers(family, rule), rule
    _, origin = answers(family, "kl:1.0")
    assert any("relaxed" in row for row in origin) and any("target" in row for row in origin)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mesh"), [("llama", "data=8"), ("gemma", "data=2,tensor=4"), ("qwen", "tensor=8")])
def test_so_does_a_target_alone(family, mesh, answers):
    out = kj.generate(spread(family_pair(family), mesh), PROMPTS, verifier=None, **DECODING)
    assert (tokens_of(out), out.origin) == answers(family, None)


@pytest.mark.parametrize(
    ("mesh", "axes", "draft_axes", "prompts"),
    [
        pytest.param("data=2,tensor=4", None, "replicated", PROMPTS, marks=slow),
        ("data=2,tensor=4", "vocab=none", "replicated,vocab=tensor", PROMPTS[:3]),  # and rows that do not divide
        pytest.param("data=2,tensor=4", "vocab=none", "replicated,vocab=tensor", PROMPTS, marks=slow),
        pytest.param("data=2,fsdp=2,tensor=2", None, None, PROMPTS, marks=slow),
        pytest.param("data=2,tensor=4", None, None, PROMPTS[:3], marks=slow),
    ],
)
def test_so_does_one_under_other_tables(mesh, axes, draft_axes, prompts, answers):
    pair = spread(family_pair("qwen"), mesh, axes, draft_axes)
    out = kj.generate(pair, prompts, verifier="kl:1.0", **DECODING)
    tokens, origin = answers("qwen", "kl:1.0")
    assert (tokens_of(out), out.origin) == (tokens[: len(prompts)], origin[: len(prompts)])


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        ("gemma", "data=2,tensor=4"),
        *(pytest.param("gemma", mesh, marks=slow) for mesh in MESHES[:2]),
        *(pytest.param("llama", mesh, marks=slow) for mesh in MESHES[:3]),
    ],
)
def test_a_queue_of_prompts_does_too(family, mesh):
    prompts = [np.roll(PROMPTS[-1], i) for i in range(12)]
    budgets = [4 + 3 * (i % 5) for i in range(len(prompts))]
    queue = {"verifier": "kl:1.0", "draft_length": 3, "max_new_tokens": budgets, "batch_size": 8}
    pair = family_pair(family)
    alone, out = kj.generate(pair, prompts, **queue), kj.generate(spread(pair, mesh), prompts, **queue)
    assert (tokens_of(out), out.origin) == (tokens_of(alone), alone.origin)
    assert [len(tokens) for tokens in tokens_of(out)] == budgets


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_so_does_one_of_long_prompts_that_begin_alike(family):
    """Two chunks of prefill, the first of which all prompts share."""
    whole = np.arange(PREFILL_CHUNK + 40) * 11 % VOCAB_SIZE
    prompts = [np.append(whole[: len(whole) - 3 * i], [i, 2 * i]) for i in range(10)]
    queue = {"verifier": "kl:1.0", "draft_length": 3, "max_new_tokens": [4 + i % 3 for i in range(10)], "batch_size": 8}
    pair = family_pair(family)
    alone, out = (kj.generate(each, prompts, **queue) for each in (pair, spread(pair, "data=2,tensor=4")))
    assert (tokens_of(out), out.origin) == (tokens_of(alone), alone.origin)


def test_a_batch_that_leaves_devices_idle_is_said(caplog):
    placement._say.cache_clear()
    kj.generate(spread(family_pair("llama"), "data=8"), PROMPTS[:2], verifier="exact", max_new_tokens=2, draft_length=2)
    assert "a batch of 2 cannot be split over 8 parts of the mesh: it is split 2 ways" in caplog.text


@pytest.mark.parametrize(
    ("family", "mesh"), [pytest.param("llama", "data=4,tensor=2", marks=slow), ("gemma", "data=2,tensor=4")]
)
def test_a_new_prompt_sends_no_other_rows_cache(family, mesh):
    """Gemma's one kv head does not divide, so that its caches are split by rows over the tensor axes."""
    pair, width = spread(family_pair(family), mesh), 16
    found = collectives(refill_program(pair, width=width, draft_length=3, max_new_tokens=16))
    config = pair.target.config
    a_prompts = width * max(config.hidden_size, config.num_kv_heads * config.head_dim)
    assert found and all(each.largest <= a_prompts for each in found), found


@pytest.mark.slow
def test_sampling_over_a_split_vocabulary_draws_the_same():
    pair, truncation = family_pair("llama"), {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "key": jax.random.key(3)}
    alone = kj.generate(pair, PROMPTS, verifier="exact", **DECODING, **truncation)
    out = kj.generate(spread(pair, "data=2,tensor=4"), PROMPTS, verifier="exact", **DECODING, **truncation)
    assert tokens_of(out) == tokens_of(alone)
    assert len({tuple(row) for row in tokens_of(out)}) > 1


def test_the_state_keeps_its_place_from_block_to_block():
    pair = spread(family_pair("llama"), "data=2,tensor=4")
    run = Run(pair, PROMPTS, "exact", 3, ModelDraft(), 16, Sampling.create(), (), None, False)
    before = jax.tree.map(lambda x: (x.shape, x.sharding), run.state)
    assert run.state.cache.keys[0].sharding.shard_shape((8, 8, 64, 8)) == (4, 2, 64, 8)
    run.advance(1)
    assert jax.tree.map(lambda x: (x.shape, x.sharding), run.state) == before


def largest_over(size, text):
    """Elements of the largest float32 array of a program whose last axis has that size."""
    shapes = re.findall(rf"f32\[((?:\d+,)*){size}\]", text)
    return max((size * math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)


SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
FEW_CYCLES = [
    ("llama", "data=8", "exact", {}),
    ("qwen", "tensor=8", "exact", {}),
    ("gemma", "data=2,tensor=4", "kl:1.0", {}),
    ("llama", "data=4,tensor=2", "kl:1.0", SAMPLED),
]
CYCLES = [(family, mesh, rule, {}) for family in FAMILIES for mesh in MESHES for rule in ("exact", "kl:1.0")]
CYCLES += [(family, mesh, "kl:1.0", SAMPLED) for family, mesh in (("llama", "data=8"), ("gemma", "data=2,tensor=4"))]
CYCLES = FEW_CYCLES + [pytest.param(*case, marks=slow) for case in CYCLES if case not in FEW_CYCLES]


@pytest.mark.parametrize(("family", "mesh", "rule", "sampling"), CYCLES)
def test_a_cycle_sums_over_the_vocabulary_and_never_gathers_it(family, mesh, rule, sampling):
    pair = spread(family_pair(family), mesh)
    config, tensor = pair.target.config, parse_mesh(mesh).get("tensor", 1)
    text = cycle_program(pair, rule, **DECODING, **sampling)
    found = collectives(text)
    if tensor == 1:  # whether a row still runs is all that one device asks of another
        assert found and all(each.kind == "all-reduce" and each.largest == 1 for each in found), found
        return
    assert {each.kind for each in found} <= {"all-reduce", "all-gather"}
    # The sums that Megatron's layers end with: two a layer, over hidden states; of the target's pass, of the draft's
    # first step and of its others.
    sums = [each for each in found if each.kind == "all-reduce" and "dot_general" in each.op]
    assert len(sums) == 3 * 2 * config.num_layers
    assert all(sizes[-1] == config.hidden_size for each in sums for _, sizes in each.shapes)
    # Beside them only numbers a row and position: maxima, sums, and each device's candidate for an argmax. Where
    # attention is split by rows, its queries and what is known of a row as well.
    widest = max(4 * config.hidden_size, 4 * config.num_heads * config.head_dim, 4 * tensor, SLOTS)
    for each in found:
        for _, sizes in each.shapes:
            assert VOCAB_SIZE not in sizes and VOCAB_SIZE // tensor not in sizes, each
            assert int(np.prod(sizes)) <= len(PROMPTS) * widest, each
    # A device has its own part of the logits, and nothing over the whole vocabulary but one correction a row.
    rows = len(PROMPTS) * tensor // 8
    assert largest_over(VOCAB_SIZE // tensor, text) >= rows * 4 * (VOCAB_SIZE // tensor)
    assert largest_over(VOCAB_SIZE, text) <= rows * VOCAB_SIZE


@pytest.mark.slow
def test_a_table_that_keeps_the_vocabulary_whole_shows_in_the_program():
    """So that the test above can fail."""
    text = cycle_program(spread(family_pair("llama"), "tensor=8", "vocab=none"), "exact", **DECODING)
    assert largest_over(VOCAB_SIZE, text) >= len(PROMPTS) * 4 * VOCAB_SIZE

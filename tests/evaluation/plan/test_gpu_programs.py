"""The programs of a run as the CUDA compiler leaves them for GPUs that are not here."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from kljudge_jax.evaluation.plan.hlo import Program
from kljudge_jax.evaluation.plan.plan import _bytes
from kljudge_jax.evaluation.plan.programs import abstract_pair, compiled_programs
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.parallel.topology import GPUS, topology_devices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed"
    ),
]

TARGET = TransformerConfig("llama", 2048, 512, 1024, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=128)
DRAFT = TransformerConfig("llama", 2048, 256, 512, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=64)
K, BATCH = 4, 4
KERNEL = "__gpu$xla.gpu.triton"
MESHES = [("h100:1", None), ("h100:4", "tensor=4"), ("h100:4", "data=2,tensor=2")]
SHORT, LONG = 40, 2000  # tokens of prompts: caches that are not felt beside the weights, and such as are

_kept = {}


def cycle_of(topology, mesh, *, target=TARGET, batch=BATCH, prompt=LONG, kind="cycle", **storage):
    """The pair, its compiled cycle (or prefill or refill), and that read."""
    key = topology, mesh, target, batch, prompt, kind, tuple(storage.items())
    if key not in _kept:
        devices = topology_devices(topology)
        placement = Placement.parse(mesh, draft_axes=mesh and "target", devices=devices)
        pair = abstract_pair(target, DRAFT, placement, devices, **storage)
        config = DecodingConfig(max_new_tokens=64, draft_length=K, batch=batch)
        *_, found = compiled_programs(pair, "kl:0.4", config, prompt, (kind,))
        _kept[key] = pair, found, Program(found.executable.as_text())
    return _kept[key]


def assert_all_donated(found):
    header = found.executable.as_text().partition("\n")[0]
    assert header.count("-alias)") == len(jax.tree.leaves(found.state))
    memory = found.executable.memory_analysis()
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes <= 1024


def operations(program):
    return [op for computation in program._computations.values() for op in computation.values()]


@pytest.mark.parametrize(("topology", "mesh"), MESHES[:2])
def test_four_bits_are_read_in_the_order_in_which_they_are_stored(topology, mesh):
    pair, found, _ = cycle_of(topology, mesh, bits=4, draft_bits=4)
    weights = [leaf for leaf in jax.tree.leaves([pair.target, pair.draft]) if leaf.dtype == jnp.int4]
    made = re.findall(r" = s4\[([\d,]+)\]\S* ([\w-]+)\(", found.executable.as_text().split("\nENTRY ", 1)[1])
    assert len(weights) == 7 * (TARGET.num_layers + DRAFT.num_layers)
    assert {operation for _, operation in made} <= {"parameter", "bitcast", "get-tuple-element"}, made


@pytest.mark.parametrize(("topology", "mesh", "prompt"), [(*where, LONG) for where in MESHES] + [(*MESHES[0], SHORT)])
def test_weights_and_caches_stay_where_they_lie_and_every_array_of_the_state_is_donated(topology, mesh, prompt):
    pair, found, program = cycle_of(topology, mesh, prompt=prompt)
    assert_all_donated(found)
    smallest = min(_bytes(found.state.cache.keys[0]), _bytes(found.state.drafter.keys[0]))
    for op in operations(program):
        if op.code.removesuffix("-start") in ("all-gather", "all-to-all", "collective-permute"):
            assert op.bytes < smallest / 4, op.text
    traffic, entry = program.cycle(), program.entry_copies()
    assert not [size for size in traffic.copies + entry if size >= min(smallest, _bytes(pair.target) / 8)]
    # Logits of K + 1 and K positions, some of them several times, and not a cache or a matrix beside.
    logits = 4 * BATCH * (2 * K + 1) * TARGET.vocab_size
    assert found.executable.memory_analysis().temp_size_in_bytes < 4 * logits + (4 << 20)


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_a_cycle_loops_over_draft_tokens_and_nothing_else(topology, mesh):
    turns = [turns for turns, _ in cycle_of(topology, mesh)[2].cycle().loops]
    # KL's sums over a part of the vocabulary are a loop of no turn or one, by what the draft knows.
    assert [n for n in turns if n is not None] == [K - 1] and turns.count(None) <= 1


def test_collectives_of_a_cycle_are_those_of_its_layers_and_a_few_of_the_vocabulary():
    found = cycle_of("h100:4", "tensor=4")[2].cycle().collectives
    layers = 2 * TARGET.num_layers + K * 2 * DRAFT.num_layers
    assert set(found) == {"all-reduce"} and layers <= found["all-reduce"] <= layers + 1 + 3 * K + 12
    assert not cycle_of("h100:1", None)[2].cycle().collectives


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_no_kernel_of_another_backend_is_in_the_program(topology, mesh):
    calls = cycle_of(topology, mesh)[2].cycle().custom_calls
    assert not [
        name for name in calls if "kljudge" in name.lower() or "tpu" in name.lower() or "mosaic" in name.lower()
    ]


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_long_caches_are_read_by_the_kernel(topology, mesh):
    calls = cycle_of(topology, mesh)[2].cycle().custom_calls
    assert calls[KERNEL] == TARGET.num_layers + K * DRAFT.num_layers


@pytest.mark.parametrize("how", [{"prompt": SHORT}, {"dtype": jnp.float32}])
def test_short_caches_and_those_in_float32_are_read_by_xla(how):
    found = cycle_of("h100:1", None, **how)[2].cycle()
    assert found.moved and not found.custom_calls[KERNEL]


def test_a_prefill_by_the_kernel_writes_no_scores_of_all_slots():
    _, found, program = cycle_of("h100:1", None, kind="prefill")
    slots = found.state.cache.slots
    scores = [
        op for op in operations(program) for shape in op.shapes if slots in shape.sizes[-1:] and shape.element == "f32"
    ]
    assert not scores


def test_a_cycle_in_fewer_bits_moves_fewer_bytes():
    """Of a pair whose weights are most of what a cycle moves."""
    large = TransformerConfig("llama", 2048, 1024, 4096, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=128)
    whole, rounded = (
        cycle_of("h100:1", None, target=large, batch=1, prompt=SHORT, bits=bits, draft_bits=bits) for bits in (None, 8)
    )
    assert _bytes(rounded[0].target) < 0.52 * _bytes(whole[0].target)
    assert rounded[2].cycle().moved < 0.6 * whole[2].cycle().moved


@pytest.mark.parametrize("kind", ["prefill", "refill"])
def test_prefill_and_refill_compile_and_donate_what_they_can(kind):
    _, found, _ = cycle_of("h100:4", "data=2,tensor=2", prompt=SHORT, kind=kind)
    if kind == "refill":
        assert_all_donated(found)
    else:
        made = found.executable.output_shardings
        for sharding, leaf in zip(jax.tree.leaves(made), jax.tree.leaves(found.state), strict=True):
            assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize("card", GPUS)
def test_every_card_is_one_to_compile_for(card):
    devices = topology_devices(f"{card}:2")
    assert len(devices) == 2 and {device.platform for device in devices} == {"gpu"}

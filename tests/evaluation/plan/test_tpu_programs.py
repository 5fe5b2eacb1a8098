"""The programs of a run as the TPU compiler leaves them: what would be slow there is seen here, without a TPU."""

import importlib.metadata
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.evaluation.plan.hlo import Program
from kljudge_jax.evaluation.plan.plan import _bytes, _share
from kljudge_jax.evaluation.plan.programs import abstract_pair, compiled_programs
from kljudge_jax.generation.arguments import drafter_for
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.generation.costs import drafter_reads
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.eagle3_files import described_for
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.parallel.topology import topology_devices

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]

TARGET = TransformerConfig("llama", 2048, 512, 1024, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=128)
DRAFT = TransformerConfig("llama", 2048, 256, 512, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=64)
K, BATCH, PROMPT = 4, 4, 40
MESHES = [("v5e:1x1", None), ("v5e:2x2", "tensor=4"), ("v5e:2x2", "data=2,tensor=2")]

_kept = {}


def compiled(topology, mesh, *kinds, batch=BATCH, rule="kl:0.4", temperature=0.0, top_p=1.0, prompt=PROMPT, **storage):
    """The pair, and the compiled programs of those kinds by kind."""
    key = topology, mesh, kinds, batch, rule, temperature, top_p, prompt, tuple(storage.items())
    if key not in _kept:
        devices = topology_devices(topology)
        pair = abstract_pair(
            TARGET, DRAFT, Placement.parse(mesh, draft_axes=mesh and "target", devices=devices), devices, **storage
        )
        config = DecodingConfig(max_new_tokens=64, temperature=temperature, top_p=top_p, draft_length=K, batch=batch)
        found = {made.name.partition("@")[0]: made for made in compiled_programs(pair, rule, config, prompt, kinds)}
        _kept[key] = pair, found
    return _kept[key]


def cycle_of(*where, **how):
    pair, found = compiled(*where, "cycle", **how)
    return pair, found["cycle"], Program(found["cycle"].executable.as_text())


def assert_all_donated(found):
    header = found.executable.as_text().partition("\n")[0]
    assert header.count("-alias)") == len(jax.tree.leaves(found.state))
    # What is left of the results is the table of where they lie, 8 bytes each.
    memory = found.executable.memory_analysis()
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes <= 1024


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_a_cycle_loops_over_draft_tokens_and_nothing_else(topology, mesh):
    _, _, program = cycle_of(topology, mesh)
    turns = [turns for turns, _ in program.cycle().loops]
    # KL's sums over a part of the vocabulary are a loop of no turn or one, by what the draft knows. A scatter of rows
    # would be a loop of BATCH turns.
    assert [n for n in turns if n is not None] == [K - 1] and turns.count(None) <= 1


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_weights_and_caches_stay_where_they_lie_and_every_array_of_the_state_is_donated(topology, mesh):
    pair, found, program = cycle_of(topology, mesh)
    memory = found.executable.memory_analysis()
    assert_all_donated(found)
    smallest = min(_bytes(found.state.cache.keys[0]), _bytes(found.state.drafter.keys[0]))
    for computation in program._computations.values():
        for op in computation.values():
            if op.code.removesuffix("-start") in ("all-gather", "all-to-all", "collective-permute"):
                assert op.bytes < smallest / 4, op.text
    # Weights are read, and not laid out anew: nothing as large as one is copied.
    traffic, entry = program.cycle(), program.entry_copies()
    assert not [size for size in traffic.copies + entry if size >= _bytes(pair.target) / 8]
    # Logits of K + 1 and K positions, some of them several times, and not a cache or a matrix beside.
    logits = 4 * BATCH * (2 * K + 1) * TARGET.vocab_size
    assert memory.temp_size_in_bytes < 4 * logits + 2 * _bytes(found.state.cache) + (4 << 20)


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_a_cycle_moves_little_more_than_its_floor(topology, mesh):
    pair, found, program = cycle_of(topology, mesh)
    floor = _share(pair.target) + K * _share(pair.draft) + _bytes([found.state.cache, found.state.drafter])
    assert program.cycle().moved < 1.5 * floor


def test_collectives_of_a_cycle_are_those_of_its_layers_and_a_few_of_the_vocabulary():
    _, _, program = cycle_of("v5e:2x2", "tensor=4")
    found = program.cycle().collectives
    layers = 2 * TARGET.num_layers + K * 2 * DRAFT.num_layers
    assert set(found) == {"all-reduce"} and found["all-reduce"] <= layers + 1 + 3 * K + 12


def test_top_p_adds_few_exchanges_on_a_mesh():
    greedy = cycle_of("v5e:2x2", "tensor=4")[2].cycle().collectives["all-reduce"]
    sampled = cycle_of("v5e:2x2", "tensor=4", temperature=0.8, top_p=0.9)[2].cycle().collectives["all-reduce"]
    assert greedy < sampled <= greedy + 100 * (K + 1) / 9  # 100 at a draft length of 8


def test_no_kernel_of_another_backend_is_in_the_program():
    for where in MESHES:
        calls = cycle_of(*where)[2].cycle().custom_calls
        assert not [name for name in calls if "kljudge" in name.lower() or "triton" in name.lower()]


def test_products_of_a_single_row_reach_the_matrix_unit():
    """A product on the vector unit is a fusion without a convolution."""
    _, _, program = cycle_of("v5e:1x1", None, batch=1)
    texts = [
        "".join(inside.text for inside in computation.values())
        for computation in program._computations.values()
        if any("draft/while" in op.source and op.source.endswith("dot_general") for op in computation.values())
    ]
    products = [text for text in texts if re.search(r"bf16\[\d+,(256|512)\]", text)]
    assert products and all("convolution" in text for text in products if "reduce_sum" not in text)


def test_a_cycle_in_fewer_bits_moves_fewer_bytes():
    """Of a model whose weights are most of what a cycle moves."""
    large = TransformerConfig("llama", 2048, 1024, 4096, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=128)
    devices, config = topology_devices("v5e:1x1"), DecodingConfig(max_new_tokens=64, batch=2)
    moved, weights = {}, {}
    for bits in (None, 8):
        pair = abstract_pair(large, None, Placement.parse(None), devices, bits=bits)
        (found,) = compiled_programs(pair, None, config, PROMPT, ("cycle",))
        weights[bits], moved[bits] = _bytes(pair.target), Program(found.executable.as_text()).cycle().moved
    assert weights[8] < 0.52 * weights[None] and moved[8] < 0.6 * moved[None]


def test_prefill_and_refill_compile_and_donate_what_they_can():
    _, found = compiled("v5e:2x2", "data=2,tensor=2", "prefill", "refill")
    assert_all_donated(found["refill"])
    # Shapes say where a state lies as `init` leaves it.
    made = found["prefill"].executable.output_shardings
    for sharding, leaf in zip(jax.tree.leaves(made), jax.tree.leaves(found["refill"].state), strict=True):
        assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_float32_models_compile_too():
    _, _, program = cycle_of("v5e:1x1", None, dtype=jnp.float32)
    assert program.cycle().moved


def _libtpu() -> tuple[int, ...]:
    try:
        return tuple(map(int, importlib.metadata.version("libtpu").split(".")[:3]))
    except importlib.metadata.PackageNotFoundError:
        return ()


CARRIED_IN_VMEM = pytest.mark.xfail(
    _libtpu() > (0, 0, 42), reason="libtpu 0.0.52 carries int8 caches that fit in VMEM there, and copies them to HBM"
)


@pytest.mark.parametrize(
    ("topology", "mesh", "storage"),
    [
        pytest.param("v5e:1x1", None, {"cache_bits": 8}, marks=CARRIED_IN_VMEM),
        ("v5e:2x2", "data=2,tensor=2", {}),
        ("v6e:1x1", None, {}),
    ],
    ids=["int8", "mesh", "v6e"],
)
def test_a_long_cache_is_read_as_far_as_it_is_written_and_stays_where_it_lies(topology, mesh, storage):
    slots, written = 8192, 2048 + K + 1
    pair, found, _ = cycle_of(topology, mesh, prompt=slots - 96, **storage)
    program = Program(found.executable.as_text(), written)
    assert found.name == f"cycle@{slots}"
    assert_all_donated(found)
    traffic = program.cycle()
    smallest = min(_bytes(leaf) for leaf in (found.state.cache.keys[0], found.state.drafter.keys[0]))
    moved = [size for size in traffic.copies + program.entry_copies() if size >= smallest / 4]
    assert not moved
    for computation in program._computations.values():
        for op in computation.values():
            assert op.code not in ("gather", "all-gather") or op.bytes < smallest / 4, op.text
            # In VMEM a whole cache would be read once to be there, and written back.
            whole = [shape for shape in op.shapes if len(shape.sizes) == 4 and slots in shape.sizes[2:]]
            assert not any(shape.space for shape in whole), op.text
    caches = _bytes(found.state.cache) + K * _bytes(found.state.drafter)
    held = caches * written / slots
    assert held < traffic.blocks <= 1.15 * held
    assert traffic.moved < _share(pair.target) + K * _share(pair.draft) + 1.5 * held
    assert found.executable.memory_analysis().temp_size_in_bytes < smallest + (16 << 20)


def headed(topology, mesh, rows=512):
    """The pair of a target and an EAGLE-3 head, and its compiled cycle."""
    devices = topology_devices(topology)
    head = described_for(TARGET, rows, layers=(0, 1, 2))
    pair = abstract_pair(TARGET, head, Placement.parse(mesh, draft_axes=mesh and "target", devices=devices), devices)
    config = DecodingConfig(max_new_tokens=64, draft_length=K, batch=BATCH)
    (found,) = compiled_programs(pair, "kl:0.4", config, PROMPT, ("cycle",))
    return pair, found, Program(found.executable.as_text())


@pytest.mark.parametrize(("topology", "mesh"), MESHES)
def test_a_cycle_with_a_head_reads_its_parts_and_copies_none(topology, mesh):
    pair, found, program = headed(topology, mesh)
    assert_all_donated(found)
    traffic = program.cycle()
    # Over draft tokens; the spread of their logits over the vocabulary is none.
    assert [turns for turns, source in traffic.loops if "/draft/" in source] == [K - 1]
    # Neither a matrix nor a cache is laid out anew.
    largest = 4 * BATCH * (K + 1) * TARGET.vocab_size
    assert not [size for size in traffic.copies + program.entry_copies() if size > largest]
    ways = 1 if mesh is None else 4 if mesh == "tensor=4" else 2
    sums = traffic.collectives["all-reduce"]
    if ways == 1:
        assert not sum(traffic.collectives.values())
        return
    # What every device needs of a token's compact logits, and never of those of the whole vocabulary.
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        count = traffic.collectives[kind]
        assert traffic.collective_bytes[kind] <= max(count, 1) * 4 * BATCH * 512
    assert sums < 4 * 8 + 2 * TARGET.num_layers + 20
    drafter = drafter_for(pair, ModelDraft())
    read = sum(times * _share(weights) for weights, times in drafter_reads(pair, drafter, K))
    assert traffic.read < 1.5 * (_share(pair.target) + read + _bytes((found.state.cache, found.state.drafter.cache)))

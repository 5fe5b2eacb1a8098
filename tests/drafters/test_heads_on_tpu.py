"""Cycles with a head, as the TPU compiler leaves them, without a TPU."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from kljudge_jax.evaluation.plan.hlo import Program
from kljudge_jax.evaluation.plan.plan import _bytes, _share
from kljudge_jax.evaluation.plan.programs import abstract_pair, compiled_programs
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.models import dflash, eagle3
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.dflash import DFlashConfig
from kljudge_jax.models.eagle3 import Eagle3Config
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import parameters
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.parallel.topology import topology_devices

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]

TARGET = TransformerConfig(
    "qwen3", 2048, 512, 1024, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=128, qk_norm=True
)
LAYER = dataclasses.replace(TARGET, num_layers=1, qk_norm=False)
HEADS = {
    "DFlash": DFlashConfig(dataclasses.replace(TARGET, num_layers=2), (1, 2, 4), 8, 2047),
    "EAGLE-3": Eagle3Config(LAYER, (1, 2, 3), 512, 1024, own_embedding=True),
}
K, BATCH = 4, 4


def cycle_of(kind, mesh, bits=None):
    """The pair, the compiled cycle, and its program."""
    devices = topology_devices("v5e:2x2" if mesh else "v5e:1x1")
    placement = Placement.parse(mesh, draft_axes=mesh and "target", devices=devices)
    pair = abstract_pair(TARGET, None, placement, devices)
    config = HEADS[kind]
    storage = Storage(jnp.bfloat16, bits, placement.draft(config.decoder), platform="tpu")
    head = (dflash if kind == "DFlash" else eagle3).abstract(config, storage)

    def placed(name, leaf):
        sharding = storage.sharding(name, leaf.shape) or SingleDeviceSharding(devices[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    leaves = [placed(name, leaf) for name, leaf in parameters(head).items()]
    pair = dataclasses.replace(pair, draft=jax.tree.unflatten(jax.tree.structure(head), leaves))
    decoding = DecodingConfig(max_new_tokens=64, draft_length=K, batch=BATCH)
    (found,) = compiled_programs(pair, "kl:0.4", decoding, 40, ("cycle",))
    return pair, found, Program(found.executable.as_text())


@pytest.mark.parametrize("mesh", [None, "tensor=4", "data=2,tensor=2"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_cycle_copies_no_cache_and_no_weight(kind, mesh):
    pair, found, program = cycle_of(kind, mesh)
    traffic, entry = program.cycle(), program.entry_copies()
    # A block is one pass, and a chain of the others a loop. KL's sums over a part of the vocabulary are another, of no
    # turn or one.
    turns = [turns for turns, _ in traffic.loops if turns is not None]
    assert turns == ([] if kind == "DFlash" else [K - 1])
    state = found.state
    caches = jax.tree.leaves((state.cache, state.drafter))
    smallest = min(_bytes(x) for x in caches if x.ndim == 4)
    assert not [size for size in traffic.copies + entry if size >= smallest], traffic.copies + entry
    assert found.executable.as_text().partition("\n")[0].count("-alias)") == len(jax.tree.leaves(state))
    reads = _share(pair.target) + (1 if kind == "DFlash" else K) * _share(pair.draft)
    assert traffic.moved < 1.6 * (reads + _share(pair.target.head) + _bytes(caches))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_head_compiles_and_moves_fewer_bytes(kind, bits):
    (whole, _, before), (rounded, _, after) = (cycle_of(kind, None, each) for each in (None, bits))
    assert _bytes(rounded.draft) < 0.8 * _bytes(whole.draft)
    assert after.cycle().moved < before.cycle().moved

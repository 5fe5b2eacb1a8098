"""The table of logical axes, resolved for the sizes of a model."""

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from spread_pairs import FAMILIES
from tiny_pairs import tiny_config

from kljudge_jax.models.transformer import abstract, parameters
from kljudge_jax.parallel.axes import parse_axes
from kljudge_jax.parallel.layout import Layout, undivided
from kljudge_jax.parallel.mesh import mesh_factors, mesh_from_spec, parse_mesh


def layout_of(spec, word=None, **options):
    factors = mesh_factors(parse_mesh(spec))
    return Layout.create(
        AbstractMesh(tuple(factors.values()), tuple(factors)), parse_axes(word), tiny_config(**options)
    )


def test_sizes_are_split_by_the_factors_that_divide_them():
    layout = layout_of("fsdp=2,tensor=4", num_heads=12, num_kv_heads=6, intermediate_size=24, vocab_size=256)
    tensor = ("tensor.0", "tensor.1")
    assert layout.spec(("embed", "mlp"), (16, 24)) == PartitionSpec(("fsdp.0",), tensor)
    assert layout.spec(("vocab", "embed"), (256, 16)) == PartitionSpec(tensor, ("fsdp.0",))
    assert layout.spec(("embed", "heads"), (16, 12 * 8)) == PartitionSpec(("fsdp.0",), tensor)
    # 6 heads of 8 dimensions: 48 numbers divide by 4, and a head is not cut.
    assert layout.spec(("embed", "kv_heads"), (16, 6 * 8)) == PartitionSpec(("fsdp.0",), ("tensor.0",))
    assert layout.ways("kv_heads") == 2


def test_query_heads_stay_with_their_kv_heads():
    layout = layout_of("tensor=6", num_heads=9, num_kv_heads=3)  # 6 is 2 times 3, and 2 comes first
    assert layout.ways("heads") == layout.ways("kv_heads") == 1


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 2, 64, 8), ((("data.0", "tensor.1"), ("tensor.0",), None, None))),
        ((2, 2, 64, 8), (("data.0",), ("tensor.0",), None, None)),
        ((3, 2, 64, 8), (None, ("tensor.0",), None, None)),
        ((8, 2, 2, 5, 8), (("data.0", "tensor.1"), ("tensor.0",), None, None, None)),
        ((2, 2, 2, 5, 8), (("data.0",), ("tensor.0",), ("tensor.1",), None, None)),
    ],
)
def test_caches_are_split_by_rows_where_heads_are_too_few(shape, spec):
    layout = layout_of("data=2,tensor=4", num_heads=4, num_kv_heads=2)
    assert layout.attention_sharding(shape).spec == PartitionSpec(*spec)


def test_a_batch_that_does_not_divide_is_kept_whole():
    layout = layout_of("data=4,tensor=2")
    assert layout.spec(("batch", None), (6, 5)) == PartitionSpec(("data.0",), None)
    assert layout.spec(("batch", None), (3, 5)) == PartitionSpec(None, None)


def test_what_does_not_divide_is_said_by_name():
    options = {"num_heads": 9, "num_kv_heads": 3, "vocab_size": 257, "intermediate_size": 24}
    layout = layout_of("data=2,tensor=4", **options)
    said = undivided(layout, parse_axes(None), tiny_config(**options), "target")
    assert len(said) == 3
    assert "the target's 3 kv heads do not divide over tensor=4: that axis is kept whole on each device" in said[1]
    assert "257 tokens" in said[2]
    assert undivided(layout_of("data=2"), parse_axes(None), tiny_config(), "draft") == []
    half = layout_of("tensor=4", num_heads=4, num_kv_heads=2)
    assert "split 2 ways and repeated" in undivided(half, parse_axes(None), tiny_config(), "draft")[0]


def test_every_matrix_of_a_model_is_split_and_every_vector_of_hidden_size_whole():
    layout = Layout.create(mesh_from_spec("fsdp=2,tensor=2"), parse_axes(None), tiny_config(vocab_size=64))
    for name, leaf in parameters(abstract(tiny_config(vocab_size=64))).items():
        ways = leaf.size // jax.numpy.prod(jax.numpy.array(layout.parameter(name, leaf.shape).shard_shape(leaf.shape)))
        assert ways == (1 if leaf.ndim == 1 else 4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replicated_model_is_whole_on_every_device(family):
    layout = layout_of("data=2,tensor=4", "replicated", **FAMILIES[family])
    for name, leaf in parameters(abstract(tiny_config(**FAMILIES[family]))).items():
        assert not any(layout.spec((None,) * leaf.ndim, leaf.shape)), name
        assert layout.parameter(name, leaf.shape).shard_shape(leaf.shape) == leaf.shape
    assert layout.spec(("batch", "vocab"), (8, 512)) == PartitionSpec(("data.0",), None)

"""Meshes of the eight virtual devices, and pairs that are spread over them."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_pairs import END, answer, tiny_config, tiny_pair, tokens_of, with_parameters

from kljudge_jax.errors import InputError
from kljudge_jax.models.transformer import assemble, parameters
from kljudge_jax.parallel.mesh import mesh_from_spec, partition, place


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("data=2,tensor=4", {"data": 2, "tensor": 4}),
        ("tensor=4, data=2", {"data": 2, "tensor": 4}),
        ("tensor=8", {"tensor": 8}),
        ("fsdp=2,tensor=2", {"fsdp": 2, "tensor": 2}),
        ("data=1", {"data": 1}),
    ],
)
def test_a_spec_names_axes_and_sizes(spec, shape):
    mesh = mesh_from_spec(spec)
    assert dict(mesh.shape) == shape
    assert mesh.devices.flatten().tolist() == jax.devices()[: mesh.size]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "name=size"),
        ("data", "name=size"),
        ("data=", "name=size"),
        ("data=0", "name=size"),
        ("data=-2", "name=size"),
        ("data=2.0", "name=size"),
        ("depth=2", "data, fsdp, tensor"),
        ("data=2,,tensor=2", "name=size"),
        ("data=2,data=2", "names data twice"),
        ("data=3,tensor=4", "needs 12 devices, and there are 8"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        mesh_from_spec(spec)


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("embedding.table", (64, 16), ("tensor", "fsdp")),
        ("embedding.table", (63, 16), (None, "fsdp")),
        ("head.weight", (64, 16), ("tensor", "fsdp")),
        ("layers.11.attention.query.weight", (32, 16), ("tensor", "fsdp")),
        ("layers.0.attention.value.bias", (6,), (None,)),
        ("layers.0.attention.key.bias", (8,), ("tensor",)),
        ("layers.0.attention.out.weight", (16, 32), ("fsdp", "tensor")),
        ("layers.0.mlp.down.weight", (15, 24), (None, "tensor")),
        ("layers.0.attention.out.bias", (16,), ()),
        ("layers.0.attention_norm.scale", (16,), ()),
        ("final_norm.scale", (16,), ()),
    ],
)
def test_parameters_are_split_where_their_sizes_divide(name, shape, axes):
    assert partition(name, shape, mesh_from_spec("fsdp=2,tensor=4")) == PartitionSpec(*axes)
    assert partition(name, shape, mesh_from_spec("data=8")) == PartitionSpec(*(None for _ in axes))


def spread(model, mesh):
    put = place(mesh)
    return assemble(model.config, {name: put(name, np.asarray(x)) for name, x in parameters(model).items()})


def test_every_matrix_of_a_model_is_split():
    mesh = mesh_from_spec("fsdp=2,tensor=2")
    model = spread(tiny_pair(vocab_size=64).target, mesh)
    for name, x in parameters(model).items():
        shards = {str(shard.index) for shard in x.addressable_shards}
        assert len(shards) == (1 if x.ndim == 1 else 4), name
        assert x.sharding.mesh == mesh


def silent(model):
    """The model without a word for its last token, END: its logit is 0, and others are above."""
    return with_parameters(
        model, lambda name, x: x * (np.arange(END + 1) < END)[:, None] if name == "head.weight" else x
    )


def cut(model):
    """The same without that token: 256 tokens can be split."""
    values = {name: np.asarray(x) for name, x in parameters(model).items()}
    values |= {"embedding.table": values["embedding.table"][:END], "head.weight": values["head.weight"][:END]}
    return assemble(tiny_config(vocab_size=END), values)


@pytest.fixture(scope="module")
def pair():
    pair = tiny_pair(seed=3, noise=0.1)
    return dataclasses.replace(pair, target=silent(pair.target), draft=silent(pair.draft))


@pytest.mark.parametrize(
    ("spec", "rules"),
    [("data=2,tensor=4", (None, "exact", "kl:4.0")), ("tensor=8", ("exact",)), ("fsdp=2,tensor=2", ("kl:4.0",))],
)
def test_a_pair_on_a_mesh_answers_as_on_one_device(pair, spec, rules):
    mesh = mesh_from_spec(spec)
    placed = dataclasses.replace(pair, target=spread(cut(pair.target), mesh), draft=spread(cut(pair.draft), mesh))
    for rule in rules:
        out, alone = answer(placed, rule), answer(pair, rule)
        assert tokens_of(out) == tokens_of(alone)
        assert out.origin == alone.origin

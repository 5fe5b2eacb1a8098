"""Meshes of the eight virtual devices."""

import jax
import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.parallel.mesh import mesh_factors, mesh_from_spec, mesh_sizes, parse_mesh


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
    assert mesh_sizes(mesh) == parse_mesh(spec) == shape
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


def test_an_axis_is_made_of_its_prime_factors():
    assert mesh_factors({"data": 1, "tensor": 12}) == {"data.0": 1, "tensor.0": 2, "tensor.1": 2, "tensor.2": 3}
    assert dict(mesh_from_spec("fsdp=2,tensor=4").shape) == {"fsdp.0": 2, "tensor.0": 2, "tensor.1": 2}

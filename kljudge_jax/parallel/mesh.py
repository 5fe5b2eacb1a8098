"""Device meshes from a spec string such as "data=2,tensor=4"."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from kljudge_jax.errors import InputError
from kljudge_jax.parallel.axes import MESH_AXES
from kljudge_jax.spec import read_items


def parse_mesh(spec: str) -> dict[str, int]:
    """The sizes that a spec such as "data=2,tensor=4" names.

    Raises:
      InputError: an unknown or repeated axis, or a size below 1.
    """
    sizes: dict[str, int] = {}
    for name, size, _ in read_items(spec):
        if name not in MESH_AXES or not re.fullmatch(r"[1-9]\d*", size):
            raise InputError(f"mesh {spec!r}: write axes as name=size, with names of {', '.join(MESH_AXES)}")
        if name in sizes:
            raise InputError(f"mesh {spec!r} names {name} twice")
        sizes[name] = int(size)
    return {name: sizes[name] for name in MESH_AXES if name in sizes}


def mesh_from_spec(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a spec such as "data=2,tensor=4", over the first devices there are, of all hosts; or of those given.

    An axis is made of its prime factors: "tensor=4" is the two axes "tensor.0" and "tensor.1". So an array whose size
    does not divide is still split by those factors that do: 6 heads over "tensor=4" lie on two devices each, in pairs.

    Raises:
      InputError: an unknown or repeated axis, a size below 1, more devices than there are, or a host without one.
    """
    sizes = parse_mesh(spec)
    wanted, devices = math.prod(sizes.values()), list(jax.devices() if devices is None else devices)
    if wanted > len(devices):
        raise InputError(f"mesh {spec!r} needs {wanted} devices, and there are {len(devices)}")
    if wanted < len(devices) and jax.process_count() > 1:
        raise InputError(f"mesh {spec!r} takes {wanted} of the {len(devices)} devices: name all that the hosts have")
    shape = tuple(sizes.values())
    # Neighbours on the slowest axis may be far apart; a part of the devices has no shape that could be looked at.
    if wanted == len(devices):
        grid = mesh_utils.create_device_mesh(shape, devices)
    else:
        grid = np.array(devices[:wanted]).reshape(shape)
    factors = mesh_factors(sizes)
    return Mesh(grid.reshape(list(factors.values())), tuple(factors), axis_types=(AxisType.Auto,) * len(factors))


def abstract_mesh(spec: str) -> AbstractMesh:
    """The same mesh without devices."""
    factors = mesh_factors(parse_mesh(spec))
    return AbstractMesh(tuple(factors.values()), tuple(factors))


def mesh_factors(sizes: dict[str, int]) -> dict[str, int]:
    """The prime factors of a mesh's axes, as axes of their own: {"tensor": 4} to {"tensor.0": 2, "tensor.1": 2}."""
    return {f"{name}.{i}": prime for name, size in sizes.items() for i, prime in enumerate(_primes(size))}


def mesh_sizes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """The sizes that made a mesh, axes of size 1 included: {"data": 2, "tensor": 4}."""
    sizes = dict.fromkeys((axis.partition(".")[0] for axis in mesh.axis_names), 1)
    for axis, size in mesh.shape.items():
        sizes[axis.partition(".")[0]] *= size
    return sizes


def _primes(number: int) -> list[int]:
    """Prime factors, ascending; [1] of 1."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found or [1]

"""Device meshes from a word such as "data=2,tensor=4", and the shards that parameters are laid out in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")

# Mesh axes of every kind of parameter, by the end of its dotted name. `tensor` splits heads, the MLP's inner size and
# the vocabulary, `fsdp` the hidden size; whatever is not named here is replicated.
_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding\.table", ("tensor", "fsdp")),
    (r"head\.weight", ("tensor", "fsdp")),
    (r"attention\.(query|key|value)\.weight", ("tensor", "fsdp")),
    (r"attention\.(query|key|value)\.bias", ("tensor",)),
    (r"attention\.out\.weight", ("fsdp", "tensor")),
    (r"mlp\.(gate|up)\.weight", ("tensor", "fsdp")),
    (r"mlp\.(gate|up)\.bias", ("tensor",)),
    (r"mlp\.down\.weight", ("fsdp", "tensor")),
)


def mesh_from_spec(spec: str) -> Mesh:
    """The mesh of a spec such as "data=2,tensor=4", over the first devices there are.

    Raises:
      InputError: an unknown or repeated axis, a size below 1, or more devices than there are.
    """
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES or not re.fullmatch(r"[1-9]\d*", size):
            raise InputError(f"mesh {spec!r}: write axes as name=size, with names of {', '.join(AXES)}")
        if name in sizes:
            raise InputError(f"mesh {spec!r} names {name} twice")
        sizes[name] = int(size)
    wanted, devices = math.prod(sizes.values()), jax.devices()
    if wanted > len(devices):
        raise InputError(f"mesh {spec!r} needs {wanted} devices, and there are {len(devices)}")
    names = tuple(name for name in AXES if name in sizes)
    return Mesh(np.array(devices[:wanted]).reshape([sizes[name] for name in names]), names)


def place(mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """A function that puts the parameter of a dotted name on the mesh, in shards where its sizes divide."""

    def put(name: str, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, partition(name, array.shape, mesh)))

    return put


def partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How the parameter of a dotted name is split; an axis that does not divide a size leaves it whole."""
    for pattern, axes in _RULES:
        if re.search(rf"(^|\.){pattern}$", name):
            return PartitionSpec(
                *(
                    axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(axes, shape, strict=True)
                )
            )
    return PartitionSpec()

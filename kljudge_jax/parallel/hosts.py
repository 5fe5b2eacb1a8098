"""Several hosts that run one command together: joining them, reading arrays that all of them hold, and one that writes.

Every host runs the same program on the same input, so all make the same decisions; what the disk or the clock says, the
first host says for all: the others write to a folder that is thrown away (`commands.on_hosts`).
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.errors import InputError

Tree = TypeVar("Tree")

_PIECE = 1 << 26  # bytes that go between hosts at once


def join(hosts: int | None = None, coordinator: str | None = None, host: int | None = None, patience: int = 60) -> None:
    """Joins the other hosts; to be called before any array is made.

    Args:
      hosts: how many there are; None where the cluster says it (TPU pods, Slurm, Kubernetes, Open MPI), and the rest.
      coordinator: address and port of the first host, as in "10.0.0.1:8476".
      host: which one this is, from 0.
      patience: seconds after which a host that is not heard of is given up, and the run with it.

    Raises:
      InputError: what is given does not go together, or the others cannot be found.
    """
    if (hosts is None) != (coordinator is None) or (hosts is None) != (host is None):
        raise InputError("give --hosts N, --coordinator ADDRESS:PORT and --host INDEX together, or --hosts auto alone")
    if hosts is not None and host is not None and not 0 <= host < hosts:
        raise InputError(f"--host counts from 0 to {hosts - 1}, got {host}")
    jax.config.update("jax_enable_preemption_service", False)  # which would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            *(coordinator, hosts, host),
            initialization_timeout=patience,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=patience,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the hosts did not find each other ({reason}): start the command on all of them, with --hosts N, "
            "--coordinator ADDRESS:PORT and --host INDEX where the cluster does not say it"
        ) from error


def introduce(mesh: Mesh) -> None:
    """Lets all devices of a mesh speak once with each group of them that they may share sums with.

    On CPU hosts have 30 seconds to meet in a group for the first time, and while they compile a large program they may
    fall further apart than that. These programs are small.
    """
    if not several() or mesh.devices.flat[0].platform != "cpu":
        return
    split = PartitionSpec(mesh.axis_names)
    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, split), lambda _: np.ones(1, np.float32))
    for count in range(len(mesh.axis_names), 0, -1):  # all of them first, which brings the hosts together
        for axes in itertools.combinations(mesh.axis_names, count):
            total = functools.partial(jax.lax.psum, axis_name=axes)
            summed = jax.shard_map(total, mesh=mesh, in_specs=split, out_specs=PartitionSpec(), check_vma=False)
            jax.block_until_ready(jax.jit(summed)(ones))
    agreed(0)  # which has groups of its own


def several() -> bool:
    """Whether other hosts take part."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the host that writes."""
    return jax.process_index() == 0


def fetch(tree: Tree) -> Tree:
    """The arrays of a tree as NumPy arrays, whole on every host."""
    if not several():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(x):
        split = isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated
        return multihost_utils.process_allgather(x, tiled=True) if split else jax.device_get(x)

    return jax.tree.map(whole, tree)


def agreed(number: int) -> int:
    """The first host's number, where clocks would say different ones."""
    if not several():
        return number
    digits = np.array([number], np.int64).view(np.uint8)  # JAX has 32 bits of a number
    return int(_from_first(digits).view(np.int64)[0])


def share(folder: Path, *names: str) -> None:
    """Gives the other hosts files of the first one, those it has: what is finished decides what all of them do."""
    for path in (folder / name for name in names if several()):
        data = path.read_bytes() if is_first() and path.exists() else b""
        size = agreed(len(data))
        data = data or bytes(size)
        # A piece at a time, for they pass through the memory of a device.
        pieces = [_from_first(np.frombuffer(data[at : at + _PIECE], np.uint8)) for at in range(0, size, _PIECE)]
        if pieces and not is_first():
            path.write_bytes(b"".join(piece.tobytes() for piece in pieces))


def _from_first(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))

"""Several hosts that run one command together: joining them, reading arrays that all of them hold, and one that writes.

Every host runs the same program on the same input, so all make the same decisions; what the disk or the clock says, the
first host says for all.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import itertools
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.errors import InputError

Tree = TypeVar("Tree")

_HALF = 1 << 31  # numbers go between hosts in two halves below this
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
    try:
        jax.distributed.initialize(
            coordinator,
            hosts,
            host,
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

    def whole(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            mesh = x.sharding.mesh
            x = _replicated(NamedSharding(mesh, PartitionSpec()))(x)
        return jax.device_get(x)

    return jax.tree.map(whole, tree)


def agreed(number: int) -> int:
    """The first host's number, where clocks would say different ones."""
    if not several():
        return number
    high, low = _from_first(np.array(divmod(number, _HALF), np.int32)).tolist()  # JAX has 32 bits of a number
    return high * _HALF + low


def common_folder(folder: str | Path) -> Path:
    """Where this host works on a folder of results: there, on the first; on the others in a copy that is thrown away.

    So all hosts go on from the same place, whether or not they share a disk, and one writes.
    """
    if not several():
        return Path(folder)
    packed = _packed(Path(folder)) if is_first() else b""
    sent = _bytes_from_first(packed)
    if is_first():
        return Path(folder)
    copy = Path(tempfile.mkdtemp(prefix="kljudge-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(sent)) as archive:
        archive.extractall(copy)
    return copy


@contextlib.contextmanager
def chatter_aside() -> Iterator[None]:
    """Sends to stderr what libraries below Python print as the hosts meet: stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def silence_others() -> None:
    """Lets the first host alone print."""
    if several() and not is_first():
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", strict_timestamps=False) as archive:
        for path in sorted(folder.rglob("*")):  # nothing, where the folder is still to be made
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def _bytes_from_first(data: bytes) -> bytes:
    """The first host's bytes, a piece at a time, for they pass through the memory of a device."""
    size, pieces = agreed(len(data)), []
    for start in range(0, size, _PIECE):
        piece = np.zeros(min(_PIECE, size - start), np.uint8)
        if is_first():
            piece[:] = np.frombuffer(data[start : start + len(piece)], np.uint8)
        pieces.append(_from_first(piece).tobytes())
    return b"".join(pieces)


def _from_first(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


@functools.cache
def _replicated(sharding: NamedSharding):
    """A program that gathers an array: kept, since each new function would be compiled anew."""
    return jax.jit(lambda x: x, out_shardings=sharding)

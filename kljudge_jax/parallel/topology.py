"""Devices that are not here: what XLA's own compilers for TPU and GPU compile for on any machine."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from kljudge_jax.errors import InputError

# libtpu looks for a TPU and its metadata server first, unless told that there are none.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# Of which a chip is one device to JAX. (Compiled for without a TPU, a chip of v4 is two.)
TPUS = ("v5e", "v5p", "v6e")

# Slices that can be rented, chips a side.
_SIZES = {
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8",
}

# GPUs of one host.
_MOST_GPUS = 8

# The CUDA compiler takes a description of the card.
GPUS = tuple(sorted(path.stem for path in (Path(__file__).parent / "cards").glob("*.txtpb")))


def topology_devices(spec: str) -> Sequence[jax.Device]:
    """The devices of a topology such as "v5e:2x4" (a TPU slice) or "h100:4" (GPUs of one host).

    Programs compile for them, and none runs.

    Raises:
      InputError: no such topology, or the compiler is not installed.
    """
    kind, _, size = spec.strip().lower().partition(":")
    if kind in TPUS:
        return _tpu(kind, size)
    if kind in GPUS:
        return _gpu(kind, size)
    raise InputError(
        f"choose a topology of {', '.join(TPUS)}, as in v5e:2x4, or of {', '.join(GPUS)}, as in h100:8, not {spec!r}"
    )


def larger_than(spec: str, times: float) -> str | None:
    """A topology of the same kind with so many times the devices, or more; None where none is known."""
    kind, _, size = spec.strip().lower().partition(":")
    if kind in GPUS:
        return next((f"{kind}:{count}" for count in range(1, _MOST_GPUS + 1) if count >= times * int(size)), None)
    chips = {each: math.prod(map(int, each.split("x"))) for each in (*_SIZES[kind].split(), size)}
    return next((f"{kind}:{each}" for each in _SIZES[kind].split() if chips[each] >= times * chips[size]), None)


def _tpu(kind: str, size: str) -> Sequence[jax.Device]:
    if not re.fullmatch(r"\d+x\d+(x\d+)?", size):
        example = f"{kind}:{_SIZES[kind].split()[2]}"
        given = f"{kind}:{size}".rstrip(":")
        raise InputError(f"write a TPU slice with its chips a side, as in {example}, not {given}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("to compile for a TPU that is not here takes libtpu: pip install 'kljudge-jax[tpu-plan]'")
    from jax.experimental import topologies

    chips = [int(side) for side in size.split("x")]
    single = {"chips_per_host_bounds": [1, 1, 1]} if chips == [1, 1] or chips == [1, 1, 1] else {}
    # Only as long as libtpu starts: a TPU that is here is found by what its own variables say.
    added = {name: value for name, value in _WITHOUT_TPU.items() if name not in os.environ}
    os.environ.update(added)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{size}", **single)
    except Exception as error:  # libtpu's own, of several classes
        raise InputError(
            f"libtpu knows no slice {kind}:{size}: choose one of {', '.join(_SIZES[kind].split())}, or another that is "
            f"made of whole hosts ({str(error).splitlines()[0]})"
        ) from error
    finally:
        for name in added:
            del os.environ[name]
    return described.devices


def _gpu(kind: str, size: str) -> Sequence[jax.Device]:
    if not size.isdecimal() or not 1 <= int(size) <= _MOST_GPUS:
        raise InputError(f"write how many GPUs of one host, from 1 to 8, as in {kind}:8, not {kind}:{size}")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise InputError(
            "to compile for a GPU that is not here takes JAX's CUDA plugin: pip install 'kljudge-jax[gpu-plan]'"
        )
    from jax.experimental import topologies

    # JAX's plugin refuses to start without a CUDA runtime, which nothing needs that only compiles.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    card = (Path(__file__).parent / "cards" / f"{kind}.txtpb").read_text(encoding="utf-8")
    try:
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=kind, topology=f"1x1x{size}", target_config=card
        )
    except Exception as error:  # the plugin's own, of several classes
        raise InputError(f"JAX's CUDA plugin cannot compile for {kind}:{size}: {str(error).splitlines()[0]}") from error
    return described.devices

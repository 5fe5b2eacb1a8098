"""What devices have left for a run."""

from __future__ import annotations

from pathlib import Path

import jax
from jax.sharding import AbstractMesh, Mesh

# What is left to the runtime, to programs and to what falls between arrays.
USABLE = 0.92


def usable_memory(mesh: Mesh | AbstractMesh | None) -> int | None:
    """Bytes that may still be taken of each device, `USABLE` of a device in all; None where it is not known.

    Devices of a host that do not count their memory have equal shares of the host's.

    Args:
      mesh: the devices of the run; None is the first one alone.
    """
    if isinstance(mesh, Mesh):
        devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    else:
        devices = jax.local_devices()[:1]
    counted = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in stats for stats in counted):
        return min(int(USABLE * stats["bytes_limit"] - stats.get("bytes_in_use", 0)) for stats in counted)
    free = host_memory("MemAvailable")
    return None if free is None else int(USABLE * free) // len(devices)


def host_memory(name: str) -> int | None:
    """Bytes of the host, "MemTotal" or "MemAvailable"; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None

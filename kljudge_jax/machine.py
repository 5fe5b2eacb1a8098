"""What a figure was measured on and with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import msgspec

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.parallel.free_memory import host_memory
from kljudge_jax.records import Count, Record


class Machine(Record, frozen=True, kw_only=True):
    """What a figure needs beside it to be compared; what a file of an early version left out is empty.

    Attributes:
      date: of the measurement, in UTC, ISO 8601.
      backend, device, devices: JAX's name of the platform, the kind of its devices, and how many.
      device_memory_bytes: of one device, where it says so.
      runtime, driver: versions of the device's runtime and of its kernel driver.
      processor, cores, memory_bytes: of the host; the cores are those that the process may use.
      products: what multiplies matrices on a CPU, and why.
      system, python, versions: operating system, Python, and packages by name.
    """

    date: str = ""
    backend: str
    device: str
    devices: int
    device_memory_bytes: int | None = None
    runtime: str = ""
    driver: str | None = None
    processor: str
    cores: Count
    memory_bytes: int | None = None
    products: str = ""
    system: str = ""
    python: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class PeakMemory(Record, frozen=True, kw_only=True):
    """The most memory a process has used, and of what: "device", or the host's "resident set"."""

    bytes: int
    of: str


def describe_machine() -> Machine:
    """Device, processor, memory, driver, versions and date: what a figure needs beside it to be compared."""
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "transformers", "numpy")
    return Machine(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        backend=devices[0].platform,
        device=devices[0].device_kind,
        devices=len(devices),
        device_memory_bytes=_memory_stats().get("bytes_limit"),
        runtime=" ".join(devices[0].client.platform_version.split()),
        driver=_driver(),
        processor=_processor(),
        cores=cores(),
        memory_bytes=host_memory("MemTotal"),
        products=library().reason if devices[0].platform == "cpu" else "XLA's products",
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: importlib.metadata.version(name) for name in packages},
    )


def peak_memory() -> PeakMemory:
    """The most memory this process has used: of a device where it counts, else of the host (its resident set)."""
    peak = _memory_stats().get("peak_bytes_in_use")
    if peak is not None:
        return PeakMemory(bytes=int(peak), of="device")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return PeakMemory(bytes=most * (1 if sys.platform == "darwin" else 1024), of="resident set")


def load_average() -> float | None:
    """How many processes wanted to run in the last minute, this one included; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def is_busy(loads: Iterable[float | None], cores: int) -> bool:
    """Whether load averages say that others were at work as well."""
    return max((load for load in loads if load is not None), default=0.0) > 1.5 * cores


def cores() -> int:
    """How many CPU cores this process may use, which are fewer than the machine has in many a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_stats() -> dict[str, int]:
    return jax.local_devices()[0].memory_stats() or {}


def _driver() -> str | None:
    """The version of the GPU's kernel driver, where there is one."""
    version = _lines("/proc/driver/nvidia/version")
    return version[0].partition(":")[2].strip() if version else None


def _processor() -> str:
    lines = _lines("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

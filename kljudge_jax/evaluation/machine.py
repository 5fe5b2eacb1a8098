"""What a figure was measured on and with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import jax


def describe_machine() -> dict[str, object]:
    """Device, processor, versions and date: what a figure needs beside it to be compared."""
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "transformers", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "backend": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""The switch that leaves every product and every attention to XLA, for comparison or where a kernel does harm."""

from __future__ import annotations

import os

NAME = "KLJUDGE_NATIVE"


def is_off() -> bool:
    """Whether kernels of our own are switched off, by `KLJUDGE_NATIVE=0`: the CPU's library, and those in Pallas."""
    return os.environ.get(NAME) == "0"

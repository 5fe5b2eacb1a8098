"""Where a model lies: for which platform its programs are compiled, and whether one device holds all of it."""

from __future__ import annotations

from typing import NamedTuple

import jax

from kljudge_jax.kernels.cpu_library import library


class Place(NamedTuple):
    """What decides how a product or an attention is done.

    It is the model's, not the process's: a program can be compiled for devices that are not here.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      local: whether one device holds the model. XLA cannot split a native call over several.
    """

    platform: str
    local: bool = True

    @property
    def native(self) -> bool:
        """Whether the CPU library's products and attention can be called there."""
        return self.local and self.platform == "cpu" and library().ready


def default_platform() -> str:
    """The platform of the device that JAX puts a new array on."""
    device = getattr(jax.config, "jax_default_device", None)  # read by name: JAX declares it at run time
    if device is None:
        device = jax.local_devices()[0]
    platform = device if isinstance(device, str) else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def here() -> Place:
    """One device of the default platform."""
    return Place(default_platform())

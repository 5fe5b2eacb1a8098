"""Set before JAX starts: several virtual CPU devices, and no network."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(scope="session")
def models_dir():
    """The folder of real weights, for tests marked `real`."""
    folder = os.environ.get("KLJUDGE_MODELS")
    if not folder:
        pytest.skip("set KLJUDGE_MODELS to a folder of real weights")
    return folder

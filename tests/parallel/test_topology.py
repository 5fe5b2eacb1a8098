"""Devices that are not here: what is refused, and what is left as it was."""

import importlib.util
import os

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.parallel.topology import GPUS, TPUS, larger_than, topology_devices

has_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("v99:2x2", f"choose a topology of {', '.join(TPUS)}"),
        ("v5e", "write a TPU slice with its chips a side, as in v5e:2x4"),
        ("v5e:four", "write a TPU slice"),
        ("h100:0", "from 1 to 8, as in h100:8"),
        ("h100:9", "from 1 to 8"),
        ("h100:", "how many GPUs"),
    ],
)
def test_what_is_no_topology_is_refused(spec, says):
    with pytest.raises(InputError, match=says):
        topology_devices(spec)


@pytest.mark.parametrize(("spec", "extra"), [("v5e:1x1", "tpu-plan"), (f"{GPUS[0]}:1", "gpu-plan")])
def test_a_compiler_that_is_not_installed_is_named_by_its_extra(spec, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=extra):
        topology_devices(spec)


@pytest.mark.parametrize(
    ("spec", "times", "larger"),
    [
        ("v5e:1x1", 9.6, "v5e:4x4"),
        ("v5e:2x2", 1.1, "v5e:2x4"),
        ("V5P:2x2x1", 2, "v5p:2x2x2"),
        ("v6e:16x16", 1.5, None),
        ("h100:2", 1.6, "h100:4"),
        ("h100:4", 2.1, None),
    ],
)
def test_a_larger_topology_holds_so_many_times_as_much(spec, times, larger):
    assert larger_than(spec, times) == larger


@pytest.mark.tpu
@has_libtpu
def test_a_slice_has_its_chips_and_the_environment_is_left_alone():
    before = dict(os.environ)
    kinds = {spec: topology_devices(spec) for spec in ("v5e:1x1", "v5e:2x4", "v6e:2x4", "v5p:2x2x2")}
    assert [len(devices) for devices in kinds.values()] == [1, 8, 8, 8]
    assert {device.platform for devices in kinds.values() for device in devices} == {"tpu"}
    with pytest.raises(InputError, match="libtpu knows no slice v5e:3x7"):
        topology_devices("v5e:3x7")
    assert dict(os.environ) == before

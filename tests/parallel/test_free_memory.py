"""What devices have left, where they count it and where the host does."""

import types

import jax
import pytest

from kljudge_jax.parallel import free_memory
from kljudge_jax.parallel.free_memory import USABLE, host_memory, usable_memory
from kljudge_jax.parallel.mesh import abstract_mesh, mesh_from_spec


@pytest.mark.parametrize(("mesh", "shares"), [(None, 1), ("data=8", 8), ("tensor=2", 2)])
def test_a_hosts_memory_is_shared_by_the_devices_of_the_mesh_alone(mesh, shares, monkeypatch):
    monkeypatch.setattr(free_memory, "host_memory", lambda name: 8_000_000)
    assert usable_memory(mesh and mesh_from_spec(mesh)) == int(USABLE * 8_000_000) // shares


def test_devices_that_count_their_memory_are_believed_the_fullest_first(monkeypatch):
    stats = iter([{"bytes_limit": 1000, "bytes_in_use": 100}, {"bytes_limit": 1000, "bytes_in_use": 300}])
    devices = [types.SimpleNamespace(process_index=0, memory_stats=lambda: next(stats)) for _ in range(2)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert usable_memory(None) == usable_memory(abstract_mesh("data=2")) + 200 == USABLE * 1000 - 100


def test_a_system_that_does_not_say_has_memory_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    assert host_memory("MemNothing") is None
    monkeypatch.setattr(free_memory.Path, "read_text", missing)
    assert usable_memory(None) is None

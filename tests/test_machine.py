"""What a figure was measured on."""

import datetime
import json

import jax

from kljudge_jax import machine, records


def test_the_machine_is_described_in_plain_json():
    found = machine.describe_machine()
    assert records.convert(json.loads(json.dumps(found.to_dict())), machine.Machine, "file") == found
    assert found.backend == "cpu" and found.devices == len(jax.devices())
    assert found.versions["jax"] == jax.__version__
    assert abs((datetime.date.fromisoformat(found.date) - datetime.datetime.now(datetime.UTC).date()).days) <= 1
    assert found.processor and found.cores >= 1


def test_a_system_without_proc_has_a_processor_too(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(machine.Path, "read_text", missing)
    assert machine.describe_machine().processor


def test_memory_is_counted():
    peak = machine.peak_memory()
    assert peak.bytes > 10_000_000 and peak.of == "resident set"


def test_a_device_that_counts_its_memory_is_believed(monkeypatch):
    stats = {"bytes_limit": 100, "bytes_in_use": 30, "peak_bytes_in_use": 70}
    monkeypatch.setattr(machine, "_memory_stats", lambda: stats)
    assert machine.peak_memory() == machine.PeakMemory(bytes=70, of="device")
    assert machine.describe_machine().device_memory_bytes == 100

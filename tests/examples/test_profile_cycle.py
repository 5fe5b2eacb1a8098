"""The example that profiles a cycle: each scope of the program has a part of its time."""

import importlib.util
import pathlib

import pytest
from tiny_pairs import tiny_pair

FILE = pathlib.Path(__file__).parents[2] / "examples" / "profile_cycle.py"


def test_the_time_of_a_cycle_is_told_by_its_scopes(tmp_path):
    spec = importlib.util.spec_from_file_location("profile_cycle", FILE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    operations = example.profile(tiny_pair(), [[3, 1, 4], [1, 5]], "kl:0.4", cycles=2)
    found = example.shares(operations)
    assert sum(found.values()) == pytest.approx(1)
    assert all(found[scope] > 0 for scope in ("draft", "score", "verify")) and found[""] < 0.5
    example.draw(operations, "two cycles", str(tmp_path / "cycle.png"))
    assert (tmp_path / "cycle.png").read_bytes().startswith(b"\x89PNG")

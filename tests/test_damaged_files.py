"""Damaged files of every format: named in one line or harmless, never a traceback, and rarely taken for others."""

import collections

import damaged_files
import pytest


def check(cases, seed, only=None):
    counts = collections.Counter()
    for name, kind, outcome, said in damaged_files.outcomes(cases, seed, only):
        assert outcome != "traceback", (name, kind, said)
        counts[outcome] += 1
    return counts


def test_damage_is_named_or_harmless(tmp_path):
    """Some cases of each format but `model.json`, which loads a model each."""
    formats = [name for name in damaged_files.good_files(tmp_path) if name != "model/model.json"]
    counts = check(16, 7, formats)
    assert counts.total() == 16 * len(formats) and counts["named"] > 0.75 * counts.total()


@pytest.mark.slow
def test_thousands_of_damaged_files_are_named_or_harmless():
    counts = check(160, 1)
    assert counts.total() >= 3_000 and counts["named"] > 0.8 * counts.total()


def test_good_files_of_0_1_0_are_read(tmp_path):
    """Damage is told from what was good before it: every reader reads the undamaged file."""
    for name, read in damaged_files.good_files(tmp_path).items():
        read(tmp_path / name)

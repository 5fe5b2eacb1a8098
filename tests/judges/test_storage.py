"""A head comes back bit for bit, and nothing that was touched is read."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from heads import random_head
from tiny_pairs import tiny_pair

from kljudge_jax.errors import InputError
from kljudge_jax.judges.storage import load_head, read_manifest, save_head
from kljudge_jax.verification import LinearJudge, PivotAware, parse_verifier
from kljudge_jax.verification.head import PairIdentity


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "head"
    head = random_head(hidden=3, pair=PairIdentity.of(tiny_pair()))
    save_head(folder, head, {"training": {"auc": 0.8}})
    return folder, head


def test_it_comes_back_bit_for_bit(saved):
    folder, head = saved
    found = load_head(folder, tiny_pair())
    for ours, theirs in zip((found.mean, found.scale), (head.mean, head.scale), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.concatenate([x.ravel() for layer in found.layers for x in layer]),
                                  np.concatenate([x.ravel() for layer in head.layers for x in layer]))  # fmt: skip
    assert (found.setup, found.pair) == (head.setup, head.pair)
    assert read_manifest(folder).training == {"auc": 0.8}
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert str(folder.parent).encode() not in held


def test_a_word_of_the_command_line_names_it(saved):
    rule = parse_verifier(f"judge:{saved[0]},0.3,confidence=0.9", greedy=True)
    assert isinstance(rule, LinearJudge) and (rule.threshold, rule.confidence) == (0.3, 0.9)
    np.testing.assert_array_equal(rule.head.mean, saved[1].mean)
    assert isinstance(parse_verifier(f"pivot:head={saved[0]},threshold=0.3", greedy=False), PivotAware)


def test_another_pair_is_refused_by_name(saved):
    other = dataclasses.replace(tiny_pair(), draft_name="stranger")
    with pytest.raises(InputError, match=r"and draft .* and stranger"):
        load_head(saved[0], other)


def test_whatever_was_touched_is_refused(saved, tmp_path):
    files = sorted(path.relative_to(saved[0]) for path in (saved[0] / "weights").rglob("*") if path.is_file())
    for i, name in enumerate([*files, "more", "gone"]):
        folder = tmp_path / str(i)
        shutil.copytree(saved[0], folder)
        if name == "gone":
            (folder / files[0]).unlink()
        elif name == "more":
            (folder / "weights" / "more").write_text("")
        else:
            data = bytearray((folder / name).read_bytes())
            data[len(data) // 2] ^= 1
            (folder / name).write_bytes(data)
        with pytest.raises(InputError, match="is not the file that was saved"):
            load_head(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"setup": "DT"}, "not the file that was saved"),
        ({"training": {"auc": 0.9}}, "not the file that was saved"),
        ({"version": 2}, "is of version 2, and this version reads 1"),
    ],
)
def test_a_changed_manifest_is_refused(saved, tmp_path, change, says):
    shutil.copytree(saved[0], tmp_path / "a")
    manifest = json.loads((saved[0] / "judge.json").read_text())
    (tmp_path / "a" / "judge.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=says):
        load_head(tmp_path / "a")


def test_folders_of_other_things_are_refused(saved, tmp_path):
    with pytest.raises(InputError, match=r"has no judge\.json"):
        load_head(tmp_path)
    with pytest.raises(InputError, match="not an empty folder"):
        save_head(saved[0], saved[1], {})

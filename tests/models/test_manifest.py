"""SHA256SUMS: what was shipped is what is there."""

import subprocess

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.models.manifest import NAME, check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_bytes(bytes(range(256)))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "card.json").write_text("card")
    (tmp_path / "scratch").write_text("not shipped")
    write_manifest(tmp_path, ("model", "card.json"))
    return tmp_path


def test_an_untouched_folder_passes(folder):
    check_manifest(folder)
    (folder / "scratch").write_text("changed")
    check_manifest(folder)


def test_sha256sum_reads_it(folder):
    assert len((folder / NAME).read_text().splitlines()) == 3
    subprocess.run(["sha256sum", "--check", "--strict", NAME], cwd=folder, check=True, capture_output=True)


def test_every_difference_is_named(folder):
    weights = folder / "model" / "deep" / "weights"
    weights.write_bytes(b"\x01" + weights.read_bytes()[1:])
    (folder / "card.json").unlink()
    with pytest.raises(InputError, match=r"card\.json, model/deep/weights") as error:
        check_manifest(folder)
    assert "tokenizer.json" not in str(error.value)


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(InputError, match=NAME):
        check_manifest(tmp_path)

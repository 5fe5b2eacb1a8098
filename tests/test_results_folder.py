import errno
import fcntl
import subprocess
import sys

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.results_folder import FolderLock, folder_or_temporary, results_folder


def test_a_folder_is_made_with_those_above_it_and_may_be_there(tmp_path):
    wanted = tmp_path / "a" / "b"
    assert results_folder(str(wanted)) == wanted == results_folder(wanted) and wanted.is_dir()


def test_what_cannot_be_a_folder_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    for wanted in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"{wanted} cannot be a folder of results"):
            results_folder(wanted)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(InputError, match="nothing can be written there"):
        results_folder(tmp_path)


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with FolderLock(tmp_path), pytest.raises(InputError, match=f"another process writes to {tmp_path}: wait for it"):
        FolderLock(tmp_path)
    FolderLock(tmp_path).close()


def test_a_killed_writer_blocks_nobody(tmp_path):
    code = (
        "import os, pathlib, signal, sys; from kljudge_jax.results_folder import FolderLock; "
        "held = FolderLock(pathlib.Path(sys.argv[1])); print(1, flush=True); signal.pause()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    with other:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(InputError, match="another process"):
            FolderLock(tmp_path)
        other.kill()
    assert (tmp_path / "lock").exists()
    FolderLock(tmp_path).close()


def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(tmp_path), FolderLock(tmp_path):
        pass


def test_what_nobody_keeps_goes(tmp_path):
    with folder_or_temporary(tmp_path / "kept") as folder:
        assert folder == tmp_path / "kept"
    with folder_or_temporary(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()

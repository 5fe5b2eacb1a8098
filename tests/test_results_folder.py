import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.results_folder import folder_or_temporary, results_folder


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


def test_what_nobody_keeps_goes(tmp_path):
    with folder_or_temporary(tmp_path / "kept") as folder:
        assert folder == tmp_path / "kept"
    with folder_or_temporary(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()

"""Compiled programs are kept once a pair is loaded, unless the user said otherwise."""

import os
import subprocess
import sys

import jax
import pytest

from kljudge_jax.models.compiled import keep_compiled

# Each in a process of its own: the place is a setting of the whole process.
LOADED = """
import sys, jax
import kljudge_jax as kj
imported = jax.config.jax_compilation_cache_dir
if len(sys.argv) > 3:
    jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.jit(lambda x: x + 1)(1)  # what was compiled before does not matter
kj.ModelPair.from_pretrained(sys.argv[1], sys.argv[2])
jax.jit(lambda x: x * 2)(1)
print(imported, jax.config.jax_compilation_cache_dir)
"""


def loaded(home, folders, *place, **environment):
    """Where programs are kept after the import and after a pair was loaded, as a process says."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    kept |= {"HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "KLJUDGE_NATIVE": "0"}
    command = [sys.executable, "-c", LOADED, folders.target, folders.draft, *place]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_loaded_pair_keeps_what_is_compiled(tmp_path, tiny_folders):
    folder = tmp_path / ".cache" / "kljudge_jax" / "compiled"
    assert loaded(tmp_path, tiny_folders) == ["None", str(folder)]
    assert any(path.name.endswith("-cache") for path in folder.iterdir())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where programs are kept once `keep_compiled` was called, as a function, in a process that was told nothing."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "KLJUDGE_COMPILATION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)

    def kept():
        keep_compiled()
        return jax.config.jax_compilation_cache_dir

    yield kept
    jax.config.update("jax_compilation_cache_dir", before)


def test_it_is_kept_in_the_cache_folder_of_the_user(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert place() == str(tmp_path / "elsewhere" / "kljudge_jax" / "compiled")


def test_with_no_word_from_the_user_it_is_kept_at_home(place, tmp_path):
    assert place() == str(tmp_path / ".cache" / "kljudge_jax" / "compiled")


@pytest.mark.parametrize("own", ["elsewhere", ""])  # which switches it off
def test_the_variable_of_jax_stands(own, place, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", own)  # which JAX reads when it is imported
    assert place() is None
    assert not (tmp_path / ".cache").exists()


def test_the_configuration_of_jax_stands(place, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert place() == str(tmp_path / "own")
    assert not (tmp_path / ".cache").exists()


def test_the_switch_stands(place, tmp_path, monkeypatch):
    monkeypatch.setenv("KLJUDGE_COMPILATION_CACHE", "0")
    assert place() is None
    assert not (tmp_path / ".cache").exists()


def test_a_home_that_cannot_be_written_keeps_nothing(place, tmp_path):
    (tmp_path / ".cache").write_text("a file where the folder would be")
    assert place() is None


def test_a_folder_that_others_can_write_is_not_used(place, tmp_path):
    folder = tmp_path / ".cache" / "kljudge_jax" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert place() is None


@pytest.mark.slow
def test_a_loaded_pair_is_kept_in_the_cache_folder_of_the_user(tmp_path, tiny_folders):
    found = loaded(tmp_path, tiny_folders, XDG_CACHE_HOME=str(tmp_path / "elsewhere"))
    assert found[1] == str(tmp_path / "elsewhere" / "kljudge_jax" / "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["variable", "configuration", "switch"])
def test_what_the_user_said_stands_when_a_pair_is_loaded(how, tmp_path, tiny_folders):
    own = str(tmp_path / "own")
    place, environment, wanted = {
        "variable": ((), {"JAX_COMPILATION_CACHE_DIR": own}, own),
        "configuration": ((own,), {}, own),
        "switch": ((), {"KLJUDGE_COMPILATION_CACHE": "0"}, "None"),
    }[how]
    assert loaded(tmp_path, tiny_folders, *place, **environment)[1] == wanted
    assert not (tmp_path / ".cache" / "kljudge_jax" / "compiled").exists()


@pytest.mark.slow
def test_a_loaded_pair_keeps_nothing_in_a_home_that_cannot_be_written(tmp_path, tiny_folders):
    (tmp_path / ".cache").write_text("a file where the folder would be")
    assert loaded(tmp_path, tiny_folders)[1] == "None"

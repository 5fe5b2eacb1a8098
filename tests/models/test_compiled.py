"""Compiled programs are kept once a pair is loaded, unless the user said otherwise."""

import os
import subprocess
import sys

import pytest

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


def test_it_is_kept_in_the_cache_folder_of_the_user(tmp_path, tiny_folders):
    found = loaded(tmp_path, tiny_folders, XDG_CACHE_HOME=str(tmp_path / "elsewhere"))
    assert found[1] == str(tmp_path / "elsewhere" / "kljudge_jax" / "compiled")


@pytest.mark.parametrize("how", ["variable", "configuration", "switch"])
def test_what_the_user_said_stands(how, tmp_path, tiny_folders):
    own = str(tmp_path / "own")
    place, environment, wanted = {
        "variable": ((), {"JAX_COMPILATION_CACHE_DIR": own}, own),
        "configuration": ((own,), {}, own),
        "switch": ((), {"KLJUDGE_COMPILATION_CACHE": "0"}, "None"),
    }[how]
    assert loaded(tmp_path, tiny_folders, *place, **environment)[1] == wanted
    assert not (tmp_path / ".cache" / "kljudge_jax" / "compiled").exists()


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path, tiny_folders):
    (tmp_path / ".cache").write_text("a file where the folder would be")
    assert loaded(tmp_path, tiny_folders)[1] == "None"

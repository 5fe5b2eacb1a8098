"""The package without torch: everything but the cells that need it."""

import json
import subprocess
import sys

import pytest

BLOCKED = """
import sys
from importlib.machinery import PathFinder
def find_spec(name, path=None, target=None, find=PathFinder.find_spec):
    # SciPy does not bear the None in sys.modules that would hide them too.
    return None if name.partition(".")[0] in ("torch", "accelerate") else find(name, path, target)
PathFinder.find_spec = find_spec
import kljudge_jax
import kljudge_jax.evaluation.sweep.run
from kljudge_jax.cli import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(status)
"""


def call(*words):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, "sweep", *map(str, words)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_sweep_without_hf_cells_never_imports_torch(tiny_folders, tmp_path):
    (tmp_path / "problems.jsonl").write_text(json.dumps({"prompt": "text", "answer": "a"}))
    words = ["--target", tiny_folders.target, "--draft", tiny_folders.draft, "--max-new-tokens", "24"]
    words += ["--task", f"prompts:{tmp_path / 'problems.jsonl'}", "--split", "all", "--n", "1", "--draft-lengths", "4"]
    words += ["--batch", "1", "--examples", "0"]
    done = call(*words, "--rules", "none,draft,lookup:3", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("|") for line in done.stdout.splitlines()) == 2 + 3
    # Refused before the models are looked for.
    refused = call(*words, "--target", tmp_path / "nowhere", "--rules", "none,hf", "--out", tmp_path / "other")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr == (
        "kljudge sweep: the cells hf, hf:assisted and hf:lookup need torch: pip install 'kljudge-jax[baselines]', or "
        "leave them out\n"
    )
    assert not (tmp_path / "other").exists()

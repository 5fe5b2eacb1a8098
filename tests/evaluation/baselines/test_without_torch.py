"""The package without torch: everything but the cells that need it."""

import json
import subprocess
import sys

import pytest

BLOCKED = """
import sys
sys.modules["torch"] = sys.modules["accelerate"] = None  # so that they are nowhere to be found
import kljudge_jax
import kljudge_jax.evaluation.sweep.run
from kljudge_jax.cli import main
status = main(sys.argv[1:])
assert sys.modules["torch"] is None
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

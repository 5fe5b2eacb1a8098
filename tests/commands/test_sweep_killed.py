"""A sweep that the system ends without notice (SIGKILL), and the one that goes on after it."""

import json
import signal
import subprocess
import sys
import time

import pytest
from tiny_pairs import DRAFT_LENGTH

N = 12


@pytest.fixture
def sweep(tiny_folders, tmp_path):
    """Starts a sweep in a process of its own, in the sizes of `tests/test_cli.py`, whose programs it finds."""
    lines = [json.dumps({"prompt": f"text {i}", "answer": "a"}) for i in range(N)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    words = ["sweep", "--target", tiny_folders.target, "--draft", tiny_folders.draft, "--rules", "none,exact"]
    words += ["--task", f"prompts:{tmp_path / 'problems.jsonl'}", "--split", "all", "--n", N, "--batch", "1"]
    words += ["--draft-lengths", DRAFT_LENGTH, "--max-new-tokens", "24", "--examples", "0", "--out", tmp_path]
    command = [sys.executable, "-m", "kljudge_jax.cli", *map(str, words)]
    return lambda: subprocess.Popen(command, stdout=subprocess.DEVNULL)


def whole_lines(path):
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without SIGKILL")
# In the midst of the last rule, and of the first.
@pytest.mark.parametrize("asked", [2 * N - 3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sweep_that_is_killed_loses_what_was_in_flight_and_no_more(asked, sweep, tmp_path):
    path = tmp_path / "answers.jsonl"
    process = sweep()
    while len(whole_lines(path)) < asked and process.poll() is None:
        time.sleep(0.001)
    seen = whole_lines(path)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    kept = whole_lines(path)
    assert kept[: len(seen)] == seen and len(kept) <= 2 * N
    assert sweep().wait(600) == 0
    lines = whole_lines(path)
    assert lines[: len(kept)] == kept  # nothing that was written is answered again
    found = [json.loads(line) for line in lines]
    assert len(found) == 2 * N == len({(one["rule"], one["problem"]) for one in found})
    assert all(one["text"] for one in found)

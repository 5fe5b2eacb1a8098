"""A sweep that the system ends without notice (SIGKILL), and the one that goes on after it."""

import json
import signal
import subprocess
import sys
import time

import pytest

N, SLOTS = 12, 1


def sweep(out):
    words = ["sweep", "--target", "embedded", "--task", "arithmetic", "--rules", "none,exact", "--n", str(N)]
    words += ["--batch", str(SLOTS), "--max-new-tokens", "24", "--examples", "0", "--out", str(out)]
    return subprocess.Popen([sys.executable, "-m", "kljudge_jax.cli", *words], stdout=subprocess.DEVNULL)


def whole_lines(path):
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without SIGKILL")
# In the midst of the last rule, and of the first.
@pytest.mark.parametrize("asked", [2 * N - 3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sweep_that_is_killed_loses_what_was_in_flight_and_no_more(asked, tmp_path):
    path = tmp_path / "answers.jsonl"
    process = sweep(tmp_path)
    while len(whole_lines(path)) < asked and process.poll() is None:
        time.sleep(0.001)
    seen = whole_lines(path)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    kept = whole_lines(path)
    assert kept[: len(seen)] == seen and len(kept) <= 2 * N
    assert sweep(tmp_path).wait(600) == 0
    lines = whole_lines(path)
    assert lines[: len(kept)] == kept  # nothing that was written is answered again
    found = [json.loads(line) for line in lines]
    assert len(found) == 2 * N == len({(one["rule"], one["problem"]) for one in found})
    assert all(one["text"] for one in found)

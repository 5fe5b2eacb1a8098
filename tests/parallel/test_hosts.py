"""Two real processes that sweep together: one result, one writer, and what is left when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from judge_data import PAIR, made_dataset

import kljudge_jax
from kljudge_jax.cli import main
from kljudge_jax.errors import InputError
from kljudge_jax.judges.dataset import DatasetWriter, read_dataset
from kljudge_jax.parallel import hosts

ROOT = os.path.dirname(os.path.dirname(kljudge_jax.__file__))
ANSWERED = ("rule", "draft_length", "problem", "right", "token_ids", "cycles", "accepted", "relaxed")


def sweep(folders, out, n):
    return [
        *("sweep", "--target", str(folders.target), "--draft", str(folders.draft), "--task", "arithmetic"),
        *("--rules", "none,kl:4.0", "--draft-lengths", "3", "--batch", "4", "--max-new-tokens", "16"),
        # In bfloat16 near-ties fall by the order of sums, which a mesh changes.
        *("--n", str(n), "--examples", "0", "--dtype", "float32", "--out", str(out)),
    ]


def start(words, index, port, patience):
    """One of two hosts, with two devices."""
    joined = ["--mesh", "data=2,tensor=2", "--hosts", "2", "--coordinator", f"127.0.0.1:{port}", "--host", str(index)]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": ROOT}
    return subprocess.Popen(
        [sys.executable, "-m", "kljudge_jax.cli", *words, *joined, "--patience", str(patience)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(words, patience=60):
    port = free_port()
    return [start(words, index, port, patience) for index in (0, 1)]


def end(processes):
    """Ends what is left of them, with the processes that do their work."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_together(words, patience=60):
    """Two hosts to their end: exit statuses, what they printed and what they said, the first host's first."""
    processes = together(words, patience)
    try:
        said = [process.communicate(timeout=600) for process in processes]
        return [process.returncode for process in processes], *zip(*said, strict=True)
    finally:
        end(processes)


def at_work(processes, out):
    """Waits until the first answer is there."""
    while not (out / "answers.jsonl").exists() or not (out / "answers.jsonl").stat().st_size:
        if any(process.poll() is not None for process in processes):
            os.killpg(processes[0].pid, signal.SIGKILL)
            pytest.fail("\n".join(process.communicate(timeout=60)[1] for process in processes))
        time.sleep(0.05)


def answers(folder):
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: record[name] for name in ANSWERED} for record in map(json.loads, lines)]


@pytest.mark.hosts
def test_two_hosts_sweep_as_one_does(tmp_path, capsys):
    """The smallest of them; two cores that others use too may keep a host silent long."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    words = ["sweep", "--target", "embedded", "--task", "arithmetic", "--rules", "kl:0.4", "--draft-lengths", "4"]
    words += ["--n", "4", "--batch", "4", "--max-new-tokens", "16", "--examples", "0", "--out"]
    assert main([*words, str(alone)]) == 0
    capsys.readouterr()
    statuses, printed, said = run_together([*words, str(out)], patience=300)
    assert statuses == [0, 0], said
    assert "| kl:0.4 |" in printed[0] and "Gloo" not in printed[0] and printed[1] == ""
    assert answers(out) == answers(alone)
    # On one device it is another sweep.
    assert main([*words, str(out)]) == 2
    assert "its mesh differs" in capsys.readouterr().err


# Two more processes on the two cores that other tests use: one may not be heard of for longer than the patience.
@pytest.mark.hosts
@pytest.mark.parametrize(("lost", "by"), [(0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_two_hosts_go_on_after_one_was_lost(lost, by, tiny_folders, tmp_path, capsys):
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main(sweep(tiny_folders, alone, 24)) == 0
    capsys.readouterr()

    # One is killed while both are at work.
    words = sweep(tiny_folders, out, 24)
    processes = together(words, patience=20)
    try:
        at_work(processes, out)
        os.killpg(processes[lost].pid, by)
        left = processes[1 - lost]
        _, said = left.communicate(timeout=300)
    finally:
        end(processes)
    assert left.returncode == 1
    assert "another host was lost" in said and "repeat the command" in said
    kept = answers(out)
    assert 0 < len(kept) < 48

    # Repeated, they go on to what one host writes; the first writes and prints it.
    statuses, printed, said = run_together(words)
    assert statuses == [0, 0], said
    assert "| plain |" in printed[0] and printed[1] == ""
    assert answers(out) == answers(alone)
    assert answers(out)[: len(kept)] == kept
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.hosts
def test_bad_input_of_one_host_alone_ends_both(tiny_folders, tmp_path):
    words = sweep(tiny_folders, tmp_path / "out", 4)
    port = free_port()
    bad = [str(tmp_path / "missing") if word == str(tiny_folders.draft) else word for word in words]
    processes = [start(words, 0, port, 20), start(bad, 1, port, 20)]
    try:
        _, bad_said = processes[1].communicate(timeout=200)
        began = time.monotonic()
        processes[0].communicate(timeout=200)
    finally:
        end(processes)
    assert processes[1].returncode == 2 and "missing" in bad_said.strip().splitlines()[-1]
    assert "another host" not in bad_said
    assert processes[0].returncode == 1 and time.monotonic() - began < 60


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("mine", "--n 4 --max-new-tokens 160"),  # only answers that end and are right have mismatches to label
        ("bench", "--prompts 2 --rounds 2 --draft-length 4 --max-new-tokens 24"),
    ],
)
def test_two_hosts_mine_and_bench(command, options, tmp_path):
    out = tmp_path / "out"
    words = [command, "--target", "embedded", "--task", "arithmetic", "--out", str(out), *options.split()]
    statuses, printed, said = run_together(words)
    assert statuses == [0, 0], said
    assert printed[0] and printed[1] == "" and list(out.iterdir())
    if command == "mine":
        alone = [str(tmp_path / "alone") if word == str(out) else word for word in words]
        assert main(alone) == 0
        whole, split = (read_dataset(folder) for folder in (tmp_path / "alone", out))
        assert len(whole) == len(split) > 0
        np.testing.assert_array_equal(whole["important"], split["important"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((2, None, None), "together"),
        ((None, "127.0.0.1:1", None), "together"),
        ((2, "127.0.0.1:1", 2), "counts from 0 to 1"),
    ],
)
def test_hosts_that_are_half_named_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        hosts.join(*words)


def test_one_host_is_what_there_is_otherwise(tmp_path):
    assert not hosts.several() and hosts.is_first()
    assert hosts.agreed(7) == 7
    hosts.share(tmp_path, "answers.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def becomes(monkeypatch):
    """One host that takes itself for the first of several, or for another one that is sent what the first one sent."""
    sent = []

    def send(array):
        sent.append(np.asarray(jnp.asarray(array)))  # through JAX's types
        return sent[-1]

    def receive(array):
        first = sent.pop(0)
        assert (array.shape, array.dtype) == (first.shape, first.dtype)  # or the hosts would wait for each other
        return first

    def become(first):
        monkeypatch.setattr(hosts, "is_first", lambda: first)
        monkeypatch.setattr(hosts, "_from_first", send if first else receive)
        return sent

    monkeypatch.setattr(hosts, "several", lambda: True)
    return become


@pytest.mark.parametrize("number", [0, 7, -3, 2**31 - 1, 2**31, 3_000_000_000, 2**61])
def test_hosts_agree_on_numbers_that_32_bits_do_not_hold(number, becomes):
    becomes(first=True)
    assert hosts.agreed(number) == number
    becomes(first=False)
    assert hosts.agreed(number + 1) == number


def test_files_of_the_first_host_go_to_the_others_in_pieces(tmp_path, monkeypatch, becomes):
    monkeypatch.setattr(hosts, "_PIECE", 1000)
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    other.mkdir()
    (first / "answers.jsonl").write_bytes(bytes(range(256)) * 40)
    becomes(first=True)
    hosts.share(first, "answers.jsonl", "plan.json")
    sent = becomes(first=False)
    hosts.share(other, "answers.jsonl", "plan.json")
    assert not sent and [path.name for path in other.iterdir()] == ["answers.jsonl"]
    assert (other / "answers.jsonl").read_bytes() == (first / "answers.jsonl").read_bytes()


def test_other_hosts_mine_on_from_what_the_first_one_has_finished(tmp_path, becomes):
    """They have its list of questions, not its rows, which nothing they do reads."""
    data, first, other = made_dataset(questions=3, each=2), tmp_path / "first", tmp_path / "other"

    def mined(folder, questions):
        with DatasetWriter(folder, PAIR, {"seed": 1}, 9) as writer:
            done = writer.finished
            for i in questions:
                rows = [{n: data[n][row] for n in data.columns} for row in np.flatnonzero(data["question"] == i)]
                writer.append([({"question": i, "status": "mined"}, rows)])
        return done

    becomes(first=True)
    assert mined(first, [0, 1]) == set()
    becomes(first=True).clear()
    assert mined(first, [2]) == {0, 1}
    becomes(first=False)
    assert mined(other, [2]) == {0, 1}
    whole, aside = read_dataset(first), read_dataset(other)
    assert whole.questions == aside.questions
    np.testing.assert_array_equal(whole["target_hidden"][4:], aside["target_hidden"][4:])


def test_the_command_line_refuses_hosts_without_a_mesh_or_a_number(capsys):
    words = ["sweep", "--target", "embedded", "--task", "arithmetic", "--hosts"]
    assert main([*words, "2"]) == 2
    assert main([*words, "two", "--mesh", "data=2"]) == 2
    assert main(["calibrate", "--target", "embedded", "--task", "arithmetic", "--hosts", "auto"]) == 2
    assert main([*words[:-1], "--mesh", "data=2", "--coordinator", "127.0.0.1:1", "--host", "1"]) == 2
    said = capsys.readouterr().err
    assert "say how many with --hosts" in said
    assert "name all their devices" in said and "not 'two'" in said and "calibrate runs on one host" in said

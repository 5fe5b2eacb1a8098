"""Attempts to break out. Each is first shown to work where nothing confines it, so that a pass here means something."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.tasks import sandbox
from kljudge_jax.tasks.sandbox import run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

# Each raises if it is stopped. {secret} is a file of ours, {folder} one we can write to, {victim} a process of ours.
ATTEMPTS = {
    "read a file": "assert open('{secret}').read() == 'secret'",
    "list a folder": "import os; assert 'secret' in os.listdir('{folder}')",
    "write a file": "open('{folder}/new', 'w').write('x')",
    "append to a file": "open('{secret}', 'a').write('x')",
    "truncate by opening": "import os; os.open('{secret}', os.O_RDONLY | os.O_TRUNC)",
    "truncate": "import os; os.truncate('{secret}', 0)",
    "remove": "import os; os.remove('{secret}')",
    "rename": "import os; os.rename('{secret}', '{folder}/moved')",
    "link": "import os; os.link('{secret}', '{folder}/linked')",
    "make a folder": "import os; os.mkdir('{folder}/made')",
    "change mode": "import os; os.chmod('{secret}', 0o777)",
    "temporary file": "import tempfile; tempfile.TemporaryFile()",
    "shared memory": "import _posixshmem as m; m.shm_open('/kl', 0o102, mode=0o600); m.shm_unlink('/kl')",
    "memory file": "import os; os.memfd_create('x')",
    "socket": "import socket; socket.socket()",
    "unix socket": "import socket; socket.socketpair()",
    "connect": "import urllib.request as r; s = __import__('socket').create_server(('127.0.0.1', 0))",
    "fork": "import os; (os.fork() or os._exit(0))",
    "forkpty": "import os; (os.forkpty()[0] or os._exit(0))",
    "spawn": "import subprocess; subprocess.run(['true'], check=True)",
    "shell": "import os; assert os.system('true') == 0",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "signal another process": "import os; os.kill({victim}, 0)",
    "signal by file owner": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, {victim})",
    "limits of another process": "import resource as r; r.prlimit({victim}, r.RLIMIT_CPU, (9, 9))",
    "lower own limit": "import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))",
    "raw socket call": "import ctypes; assert ctypes.CDLL(None).syscall({nr_socket}, 2, 1, 0) >= 0",
    "raw ptrace of itself": "import ctypes; assert ctypes.CDLL(None).syscall({nr_ptrace}, 0, 0, 0, 0) == 0",
    "new namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x00000200) == 0",  # CLONE_FS: anybody may
}  # fmt: skip
X86 = os.uname().machine == "x86_64"


@pytest.fixture
def surroundings(tmp_path):
    (tmp_path / "secret").write_text("secret")
    victim = subprocess.Popen(["sleep", "60"])
    yield {
        "secret": tmp_path / "secret",
        "folder": tmp_path,
        "victim": victim.pid,
        "nr_socket": 41 if X86 else 198,
        "nr_ptrace": 101 if X86 else 117,
    }
    victim.kill()
    victim.wait()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_breaking_out_works_outside_and_fails_inside(name, surroundings):
    program = ATTEMPTS[name].format(**surroundings)
    before = {path.name: path.read_text() for path in surroundings["folder"].iterdir()}
    assert not run_program(program).passed
    assert {path.name: path.read_text() for path in surroundings["folder"].iterdir()} == before
    outside = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert outside.returncode == 0, outside.stderr


def test_computing_is_allowed():
    program = """
        import collections, dataclasses, datetime, decimal, functools, heapq, itertools, json, math, random
        import re, threading
        print("to nowhere")
        results = []
        threads = [threading.Thread(target=lambda: results.append(math.sqrt(16))) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert results == [4.0] * 3
        assert __name__ == "__main__"
    """
    outcome = run_program(textwrap.dedent(program))
    assert outcome.passed and outcome.detail == "passed"


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("this is no python", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early with status 0"),
        ("import os; os.abort()", f"ended early with status {-signal.SIGABRT}"),
        ("x = [0] * 10**10", "memory limit"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import ctypes; ctypes.string_at(0)", f"ended early with status {-signal.SIGSEGV}"),
    ],
)
def test_how_a_program_fails(program, detail):
    outcome = run_program(program)
    assert not outcome.passed and outcome.detail == detail


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import time; time.sleep(60)",
    ],
)
def test_time_is_limited(program):
    began = time.monotonic()
    outcome = run_program(program, seconds=1)
    assert not outcome.passed and outcome.detail == "time limit"
    assert time.monotonic() - began < 20


def test_a_program_cannot_flood_or_forge_the_report():
    write_everywhere = "    for i in range(20):\n        try: os.write(i, {what})\n        except OSError: pass\n"
    flood = "import os\nwhile True:\n" + write_everywhere.format(what="b'passed' * 10000")
    assert not run_program(flood, seconds=2).passed
    forgery = "import os\nif True:\n" + write_everywhere.format(what="b'passed'") + "os._exit(0)"
    assert not run_program(forgery).passed


def test_memory_is_limited_in_small_pieces_too():
    assert run_program("x = [bytes(1 << 20) for _ in range(100)]", memory_mb=512).passed
    assert run_program("x = [bytes(1 << 20) for _ in range(1000)]", memory_mb=512).detail == "memory limit"


def test_the_environment_stays_outside(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_MINE", "x")
    assert run_program("import os; assert 'TOKEN_OF_MINE' not in os.environ").passed


def test_refused_on_other_systems(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(InputError, match="on Linux"):
        run_program("pass")

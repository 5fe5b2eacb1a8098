"""Runs a program that a model wrote, in a process that the kernel keeps from everything but computing.

What stops it (Linux on x86-64 and AArch64; elsewhere it is refused):

- seccomp: a list of allowed system calls. No sockets, no new process or program, no file opened for writing, created,
  renamed or removed, no signal to another process, no raising of its own limits.
- Landlock, from Linux 5.13 on: it reads the Python installation and the system's libraries; of other files it can ask
  whether they are there and no more. On an older kernel it can read what the user can; what it reads has no way out,
  since its output is thrown away.
- Limits on processor time, memory and wall-clock time; no core dump.

What this does not stop: a bug of the kernel, or side channels such as timing. And a program can find the word that
stands for "passed" in its own process: it is guarded against a stray `exit(0)`, not against malice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path

from kljudge_jax.errors import InputError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_LONGEST_REPORT = 200
_REFUSED = "refused: "


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
      passed: it ran to its end without an exception.
      detail: "passed", the name of the exception, "time limit", "memory limit", or how it ended otherwise.
    """

    passed: bool
    detail: str


def check_sandbox() -> None:
    """Raises `InputError` on a system without the kernel's guards."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise InputError("Run model-written code on Linux (x86-64 or AArch64): this system cannot confine it.")


def run_program(program: str, seconds: int = 5, memory_mb: int = 512) -> Outcome:
    """Runs Python source in a fresh, confined process: the standard library, no input, no output.

    Args:
      program: what to run, tests included: it passes if it ends without an exception.
      seconds: of processor time; three times as long by the clock.
      memory_mb: address space in MiB.

    Raises:
      InputError: this system cannot confine a process.
    """
    check_sandbox()
    word = secrets.token_hex(16)
    request = {"program": program, "word": word, "seconds": seconds, "memory": memory_mb << 20}
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment | {"LC_ALL": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )
    assert child.stdin is not None and child.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(3 * seconds, stop)
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(request).encode())
        # Bounded: the program may have found the pipe and be writing to it without end.
        told = child.stdout.read(_LONGEST_REPORT).decode("utf-8", "replace")
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)
    finally:
        timer.cancel()
        child.kill()
        child.wait()
        child.stdout.close()
    if told.startswith(_REFUSED):
        raise InputError(f"Run model-written code on a newer Linux: {told.removeprefix(_REFUSED)}.")
    if told == word:
        return Outcome(True, "passed")
    if late.is_set() or (not told and child.returncode in (-signal.SIGXCPU, -signal.SIGKILL)):
        return Outcome(False, "time limit")
    if told == "MemoryError":
        return Outcome(False, "memory limit")
    return Outcome(False, told if told.isidentifier() else f"ended early with status {child.returncode}")

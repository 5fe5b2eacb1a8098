"""A command that runs on several hosts together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback

from kljudge_jax.commands.command import BAD_INPUT, FAILED
from kljudge_jax.errors import InputError

# Those with one result, which every host works out.
_COMMANDS = ("sweep", "mine", "bench", "generate")

# Names, for a process that works, the descriptor that ends when the one that watches it does.
_LIFELINE = "KLJUDGE_LIFELINE"

# Seconds from an error to the end of a host: others that fail on the same input have time to say so themselves.
_GRACE = 1.0


def run_on_hosts(run, options) -> int:
    """Runs a command as one of several hosts, of which the first writes and prints; returns the exit status.

    A host that is lost ends the others with status 1. JAX ends a process that has lost another by aborting it, within
    some `options.patience` seconds: so the work is done by a process of its own, and this one says what happened.
    """
    if options.command not in _COMMANDS:
        raise InputError(f"{options.command} runs on one host: leave out --hosts")
    if options.mesh is None:
        raise InputError("several hosts share one mesh: name all their devices, such as --mesh data=2,tensor=8")
    if options.patience < 1:
        raise InputError("--patience starts at 1 second")
    hosts = None if options.hosts == "auto" else _count(options.hosts)
    if _LIFELINE in os.environ:
        return _work(run, options, hosts)
    status = _watched(options.words)
    if status < 0:
        print(
            f"kljudge {options.command}: another host was lost, or this one was stopped; repeat the command on all "
            "hosts to go on",
            file=sys.stderr,
        )
        return FAILED
    return status


def _watched(words: list[str]) -> int:
    """The exit status of a process that does the work; below 0 if a signal ended it."""
    ours, theirs = os.pipe()
    try:
        worker = subprocess.Popen(
            [sys.executable, "-m", "kljudge_jax.cli", *words],
            pass_fds=[ours],
            env=os.environ | {_LIFELINE: str(ours)},
        )
        os.close(ours)
        try:
            return worker.wait()
        except KeyboardInterrupt:  # the terminal has told the worker too
            return worker.wait()
    finally:
        os.close(theirs)


def _work(run, options, hosts: int | None) -> int:
    # Only now, since this starts JAX.
    import jax

    from kljudge_jax.parallel import hosts as parallel
    from kljudge_jax.parallel.mesh import mesh_from_spec

    def follow(lifeline: int) -> None:
        os.read(lifeline, 1)
        os._exit(FAILED)

    threading.Thread(target=follow, args=(int(os.environ[_LIFELINE]),), daemon=True).start()
    with parallel.chatter_aside():
        parallel.join(hosts, options.coordinator, options.host, options.patience)
    parallel.silence_others()
    try:
        with parallel.chatter_aside():
            parallel.introduce(mesh_from_spec(options.mesh))
        if hasattr(options, "out"):
            options.out = str(parallel.common_folder(options.out))
        status = run(options)
        sys.stdout.flush()
        return status
    except Exception as error:
        if not isinstance(error, InputError | OSError | jax.errors.JaxRuntimeError):
            traceback.print_exc()  # a fault of ours
        print(f"kljudge {options.command}: {_reason(error)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # At once: JAX would wait at exit for hosts that will not come, and end this process by a signal.
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            os.abort()  # a host that is gone is seen as an error of what was sent to it
        time.sleep(_GRACE)
        os._exit(BAD_INPUT if isinstance(error, InputError) else FAILED)


def _reason(error: Exception) -> str:
    """An error in one line."""
    said = " ".join(str(error).split("\n")[0].split())
    return said if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {said}"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--hosts is auto or a whole number from 1 on, not {text!r}")
    return int(text)

"""A command that runs on several hosts together."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

from kljudge_jax.commands.command import BAD_INPUT, FAILED
from kljudge_jax.errors import InputError

# Those with one result, which every host works out.
_COMMANDS = ("sweep", "mine", "bench", "generate")

# Seconds from an error to the end of a host: others that fail on the same input have time to say so themselves.
_GRACE = 1.0


def run_on_hosts(run, options) -> int:
    """Runs a command as one of several hosts, of which the first writes and prints; returns the exit status.

    The process is the command's: an error ends it here. A host that is lost ends the others with status 1, within some
    `options.patience` seconds.
    """
    if options.command not in _COMMANDS:
        raise InputError(f"{options.command} runs on one host: leave out --hosts")
    if options.mesh is None:
        raise InputError("several hosts share one mesh: name all their devices, such as --mesh data=2,tensor=8")
    count = None if options.hosts == "auto" else int(options.hosts) if options.hosts.isdecimal() else 0
    if count == 0:
        raise InputError(f"--hosts is auto or a whole number from 1 on, not {options.hosts!r}")

    # Only now, since this starts JAX.
    import jax

    from kljudge_jax.parallel import hosts
    from kljudge_jax.parallel.mesh import mesh_from_spec

    printed = os.dup(1)
    os.dup2(2, 1)  # what libraries print as hosts meet is no result
    hosts.join(count, options.coordinator, options.host, options.patience)
    try:
        first = hosts.is_first()
        # Once there are devices, since libtpu handles the signal too.
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
        hosts.introduce(mesh_from_spec(options.mesh))
        os.dup2(printed if first else os.open(os.devnull, os.O_WRONLY), 1)
        if not first and hasattr(options, "out"):
            options.out = tempfile.mkdtemp(prefix="kljudge-")
            atexit.register(shutil.rmtree, options.out, ignore_errors=True)
        status = run(options)
        sys.stdout.flush()
        return status
    except Exception as error:
        if isinstance(error, InputError | OSError | jax.errors.JaxRuntimeError):
            said, *_ = str(error).split("\n")
            print(f"kljudge {options.command}: {said}", file=sys.stderr)
        else:
            traceback.print_exc()  # a fault of ours
        sys.stdout.flush()
        # At once: JAX would wait at exit for hosts that will not come.
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            os.abort()  # a host that is gone is seen as an error of what was sent to it
        time.sleep(_GRACE)
        os._exit(BAD_INPUT if isinstance(error, InputError) else FAILED)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """JAX aborts a process that has lost another, from a thread of its own: too late for a handler of Python's."""
    os.write(2, b"kljudge: another host was lost; repeat the command on all hosts to go on\n")
    os._exit(FAILED)

"""A command that runs on several hosts together."""

from __future__ import annotations

import os
import sys

from kljudge_jax.commands.options import FAILED
from kljudge_jax.errors import InputError

# What has one result that every host works out: the others decode nothing, or only what is streamed.
_COMMANDS = ("sweep", "mine", "bench", "generate")


def run_on_hosts(options) -> int:
    """Runs a command as one of several hosts, of which the first writes and prints; returns the exit status.

    A host that is lost ends the process with status 1, after `options.patience` seconds at the latest.
    """
    if options.command not in _COMMANDS:
        raise InputError(f"{options.command} runs on one host: leave out --hosts")
    if options.mesh is None:
        raise InputError("several hosts share one mesh: name all their devices, such as --mesh data=2,tensor=8")
    hosts = None if options.hosts == "auto" else _count(options.hosts)
    if options.patience < 1:
        raise InputError("--patience starts at 1 second")
    # Only now, since this starts JAX.
    import jax

    from kljudge_jax.parallel import hosts as parallel

    parallel.join(hosts, options.coordinator, options.host, options.patience)
    parallel.silence_others()
    try:
        if hasattr(options, "out"):
            options.out = str(parallel.common_folder(options.out))
        status = options.run(options)
        sys.stdout.flush()
        return status
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        print(
            f"kljudge {options.command}: another host was lost, or failed ({reason}); repeat the command on all hosts "
            "to go on",
            file=sys.stderr,
            flush=True,
        )
        # At once: JAX would wait at exit for hosts that will not come.
        os._exit(FAILED)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--hosts is auto or a whole number from 1 on, not {text!r}")
    return int(text)

"""XLA's compilers as they start on a machine without their chips: what they say of that is left out of stderr.

They write to the file descriptor, before the log that an environment variable could silence. So what is written while
they start goes through a process of its own, which passes on all but the lines known here: should this one be aborted,
its last words are still passed on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Lines that say: no chip is here.
KNOWN = (
    r"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR",
    r"WARNING: Logging before InitGoogle\(\) is written to STDERR",
    r"[IW]\d{4} .*\] Could not find cuda drivers on your machine, GPU will not be used\.",
    r"Failed to find host bounds for accelerator type: WARNING: could not determine TPU accelerator type.*",
    r"E\d{4} .*common_lib\.cc:\d+\] INVALID_ARGUMENT: Error: unexpected worker hostname .*",
    r"=== Source Location Trace: === *",
    r"learning/\S+/libtpu_init_utils\.cc:\d+",
    r"WARNING: could not determine TPU .*",
)

_PASS_ON = """
import re, sys
known = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not known.fullmatch(line.rstrip(b"\\r\\n")):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """While it lasts, what is written to this process's stderr loses the lines that match one of `KNOWN` in full."""
    sys.stderr.flush()
    command = [sys.executable, "-I", "-S", "-c", _PASS_ON, "|".join(KNOWN)]
    try:
        real = os.dup(2)
    except OSError:  # there is none
        yield
        return
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=real)
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        os.close(real)
        with contextlib.suppress(subprocess.TimeoutExpired):  # something that was started meanwhile still writes
            reader.wait(timeout=5)

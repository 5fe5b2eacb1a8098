"""What is left out of stderr while a compiler starts, in a process of its own, and what never is."""

import subprocess
import sys

NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1796056790.169513     723 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.
WARNING: Logging before InitGoogle() is written to STDERR
E0000 00:00:1796056924.921647    2289 common_lib.cc:554] INVALID_ARGUMENT: Error: unexpected worker hostname 'WARNING: could not determine TPU worker hostnames' from env var TPU_WORKER_HOSTNAMES. Expecting a valid hostname or IP address without port number. (Full TPU workers' addr string: WARNING)
=== Source Location Trace: ===\x20
learning/45eac/tfrc/runtime/libtpu_init_utils.cc:327
"""  # noqa: E501 - as they are written
BEGIN = "import os, sys; from kljudge_jax.evaluation.plan.quiet_start import quiet_start; write = lambda text: os.write(2, text.encode())"  # noqa: E501


def run(body):
    return subprocess.run([sys.executable, "-c", f"{BEGIN}\n{body}"], capture_output=True, text=True, timeout=60)


def test_known_lines_are_left_out_and_others_come_through_in_their_order():
    quiet = f"write('one\\n' + {NOISE!r} + 'two\\n'); print('three', file=sys.stderr)"
    done = run(f"write('first\\n')\nwith quiet_start():\n    {quiet}\nwrite('four\\n' + {NOISE!r})")
    assert done.returncode == 0
    assert done.stderr == f"first\none\ntwo\nthree\nfour\n{NOISE}"


def test_what_is_not_known_word_by_word_is_passed_on():
    lines = [
        "E0000 00:00:1796056924.921647    2289 cuda_platform.cc:52] failed call to cuInit: out of memory",
        "W0000 00:00:1796056924.9 22 a.cc:1] Could not find cuda drivers on your machine, GPU will not be used. So",
        "Fatal: learning/45eac/tfrc/runtime/libtpu_init_utils.cc:327",
    ]
    # Each in a block of its own.
    done = run("\n".join(f"with quiet_start():\n    write({line!r} + '\\n')" for line in lines))
    assert done.stderr == "".join(line + "\n" for line in lines)


def test_the_last_words_of_a_process_that_is_aborted_are_passed_on():
    done = run("with quiet_start():\n    write('F0000 check failed\\n')\n    os.abort()")
    assert done.returncode < 0 and done.stderr.startswith("F0000 check failed\n")


def test_an_error_is_raised_as_it_was_and_stderr_is_back():
    done = run("with quiet_start():\n    raise ValueError('why')")
    assert done.returncode == 1 and done.stderr.endswith("ValueError: why\n")


def test_without_a_stderr_nothing_happens():
    assert run("os.close(2)\nwith quiet_start():\n    print('here')").stdout == "here\n"

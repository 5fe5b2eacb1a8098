"""The confined process of `sandbox`: run as a script, so that it starts in milliseconds and holds nothing of ours.

It reads one request from standard input, gives up its powers one after the other, and runs the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

# Numbers from prctl.h, seccomp.h, bpf_common.h, audit.h, landlock.h and fcntl.h of Linux.
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOTTY, _ENOSYS = 1, 25, 38
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_EXECUTE, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR, _LANDLOCK_ALL_OF_VERSION_1 = 1, 4, 8, (1 << 13) - 1

# Allowed whatever the arguments: (x86-64, AArch64).
_FREE = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "readlinkat": (267, 78),
    "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61), "getcwd": (79, 17),
    "stat": (4, None), "lstat": (6, None), "readlink": (89, None), "access": (21, None),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293),
    "set_tid_address": (218, 96), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "membarrier": (324, 283),
    "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "times": (100, 153),
    "getrlimit": (97, 163), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "getrandom": (318, 278),
    "getcpu": (309, 168), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "arch_prctl": (158, None),
}  # fmt: skip
_OPEN, _OPENAT, _FCNTL = (2, None), (257, 56), (72, 25)
_CLONE, _CLONE3, _TGKILL, _PRLIMIT, _IOCTL = (56, 220), (435, 435), (234, 131), (302, 261), (16, 29)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; F_SETOWN would send signals to other processes.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)


def _syscall_filter(machine: str, pid: int) -> bytes:
    """A BPF program that allows what computing takes and answers everything else with EPERM."""
    column = ("x86_64", "aarch64").index(machine)
    code: list[bytes] = []

    def emit(operation, value, if_true=0, if_false=0):
        code.append(struct.pack("=HBBI", operation, if_true, if_false, value))

    def argument(index, high=False):
        emit(_LOAD, 16 + 8 * index + 4 * high)

    def only(call, body):
        """For this call, `body` decides; it ends in a return."""
        if call[column] is None:
            return
        outer = list(code)
        code.clear()
        body()
        inner = list(code)
        code[:] = outer
        emit(_JUMP_EQUAL, call[column], 0, len(inner))
        code.extend(inner)

    def one_of(index, values):
        def body():
            argument(index)
            for value in values:
                emit(_JUMP_EQUAL, value & 0xFFFFFFFF, 0, 1)
                emit(_RETURN, _ALLOW)
            emit(_RETURN, _ERRNO | _EPERM)

        return body

    def reading_only(index):
        def body():
            argument(index)
            emit(_JUMP_SET, _WRITING, 1, 0)
            emit(_RETURN, _ALLOW)
            emit(_RETURN, _ERRNO | _EPERM)

        return body

    def thread_only():
        argument(0)
        emit(_JUMP_SET, _CLONE_THREAD, 0, 1)
        emit(_RETURN, _ALLOW)
        emit(_RETURN, _ERRNO | _EPERM)

    def asking_only():
        argument(2)
        emit(_JUMP_EQUAL, 0, 0, 3)
        argument(2, high=True)
        emit(_JUMP_EQUAL, 0, 0, 1)
        emit(_RETURN, _ALLOW)
        emit(_RETURN, _ERRNO | _EPERM)

    emit(_LOAD, 4)
    emit(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1, 0)
    emit(_RETURN, _KILL)
    emit(_LOAD, 0)
    if machine == "x86_64":
        emit(_JUMP_GREATER_EQUAL, _X32, 0, 1)
        emit(_RETURN, _KILL)
    for number in (call[column] for call in _FREE.values() if call[column] is not None):
        emit(_JUMP_EQUAL, number, 0, 1)
        emit(_RETURN, _ALLOW)
    only(_OPEN, reading_only(1))
    only(_OPENAT, reading_only(2))
    only(_FCNTL, one_of(1, _FCNTL_COMMANDS))
    only(_CLONE, thread_only)
    only(_CLONE3, lambda: emit(_RETURN, _ERRNO | _ENOSYS))  # its flags lie in memory: libc then falls back to clone
    only(_TGKILL, one_of(0, (pid,)))
    only(_PRLIMIT, asking_only)
    only(_IOCTL, lambda: emit(_RETURN, _ERRNO | _ENOTTY))  # open() asks whether it has a terminal
    emit(_RETURN, _ERRNO | _EPERM)
    return b"".join(code)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit(seconds: int, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _restrict_reading(libc) -> None:
    """Landlock, Linux 5.13 and up: what lies below Python and the system's libraries can be read, nothing else."""
    handled = struct.pack("=Q", _LANDLOCK_ALL_OF_VERSION_1)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return
    readable = _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    for path in {sys.base_prefix, sys.prefix, "/usr/lib", "/usr/share/zoneinfo", "/lib", "/lib64", "/dev/urandom"}:
        try:
            root = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = readable if os.path.isdir(path) else _LANDLOCK_READ_FILE
        rule = struct.pack("=Qi", allowed, root)
        _checked(libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), "Landlock refuses a rule")
        os.close(root)
    _checked(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock refuses")
    os.close(ruleset)


def _confine(seconds: int, memory: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _limit(seconds, memory)
    _checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl refuses a death signal")
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl refuses no_new_privs")
    _restrict_reading(libc)
    code = _syscall_filter(platform.machine(), os.getpid())
    instructions = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions)))
    _checked(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0), "this kernel has no seccomp filters")


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        _confine(request["seconds"], request["memory"])
    except OSError as error:
        os.write(report, f"refused: {error.strerror}".encode())
        os._exit(3)
    try:
        exec(compile(request["program"], "program.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        os.write(report, type(error).__name__.encode()[:100])
        os._exit(1)
    os.write(report, request["word"].encode())
    os._exit(0)  # no exit handler of the program runs


if __name__ == "__main__":
    main()

"""The native products of the CPU: compiled once by the machine's own C++ compiler, and kept.

Nothing needs them. Without a compiler, or with `KLJUDGE_NATIVE=0`, XLA's products are used, which give the same
numbers up to rounding. They run on all processors that this process may use, by its affinity and its container's
quota, or on `KLJUDGE_THREADS` of them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax

from kljudge_jax.cache_folder import cache_folder, is_ours
from kljudge_jax.kernels import switch

_SOURCES = Path(__file__).with_name("native")
FLAGS = ("-O2", "-march=native", "-std=c++17", "-fPIC", "-pthread", "-w")
_TARGETS = (
    "kljudge_float32",
    "kljudge_bfloat16",
    "kljudge_blocks",
    "kljudge_attention",
    "kljudge_norm",
    "kljudge_sum_norm",
)


class Library(NamedTuple):
    """What became of the native products: whether they can be called, and what they are or why they cannot."""

    ready: bool
    reason: str


@functools.cache
def library() -> Library:
    """Compiles, loads and registers the products the first time; half a minute or so, and nothing from then on."""
    if switch.is_off():
        return Library(False, f"XLA's products, since {switch.NAME}=0")
    found = compiler()
    if found is None:
        return Library(False, "XLA's products, since no C++ compiler was found (c++, g++ or clang++)")
    try:
        loaded = ctypes.CDLL(str(_built(found)))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:  # RuntimeError where no thread can be had
        return Library(False, f"XLA's products, since the native ones did not compile: {_said(error)}")
    return Library(True, f"native products ({register(loaded)})")


def _said(error: Exception) -> str:
    """The line of what went wrong that says most."""
    text = getattr(error, "stderr", None) or ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A compiler says first which files led to the one with the error.
    return next((line for line in lines if "error" in line), lines[0] if lines else str(error))


def register(loaded: ctypes.CDLL, suffix: str = "") -> str:
    """Makes a compiled library's products known to XLA, and returns the instructions that it uses."""
    for target in _TARGETS:
        jax.ffi.register_ffi_target(target + suffix, jax.ffi.pycapsule(getattr(loaded, target)), platform="cpu")
    loaded.kljudge_describe.restype = ctypes.c_char_p
    return loaded.kljudge_describe().decode()


def compiler() -> str | None:
    """The machine's C++ compiler, if it has one."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def _built(compiler: str) -> Path:
    """The compiled library, made if this processor and this jaxlib have none yet."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.glob("*.[ch]*"))]
    identity = [*sources, " ".join(FLAGS), jax.__version__, compiler, _processor()]
    digest = hashlib.sha256("\0".join(identity).encode())
    name = f"decoding-{digest.hexdigest()[:16]}.so"
    try:
        folder = cache_folder()
        if (folder / name).exists() and is_ours(folder / name):
            return folder / name
        # Others may be compiling the same: each writes a file of its own, and the last one to end gives it the name.
        handle, partial = tempfile.mkstemp(".partial", name, folder)
    except OSError:  # a home that cannot be written
        folder = Path(tempfile.mkdtemp(prefix="kljudge_jax"))
        handle, partial = tempfile.mkstemp(".partial", name, folder)
    os.close(handle)
    try:
        build(compiler, Path(partial), FLAGS)
        os.chmod(partial, 0o700)  # some linkers write a file of their own in its place
        os.replace(partial, folder / name)
    finally:
        Path(partial).unlink(missing_ok=True)
    return folder / name


def build(compiler: str, path: Path, flags: tuple[str, ...]) -> None:
    """Compiles the files side by side and links them. Raises CalledProcessError with what the compiler said."""

    def run(*words):
        subprocess.run([compiler, *words], check=True, capture_output=True, text=True, timeout=300)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        objects = {source: str(Path(folder, f"{source.stem}.o")) for source in sorted(_SOURCES.glob("*.cc"))}
        jobs = [
            pool.submit(run, *flags, f"-I{jax.ffi.include_dir()}", "-c", str(source), "-o", made)
            for source, made in objects.items()
        ]
        for job in jobs:
            job.result()
        run("-shared", "-pthread", *objects.values(), "-o", str(path))


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))

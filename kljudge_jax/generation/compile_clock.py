"""What compiled and when: what separates compiling from decoding in a wall-clock time."""

from __future__ import annotations

import time

import jax

_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_last_end = float("-inf")
_hits = 0


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    global _last_end
    if event == _BACKEND_COMPILE:
        _last_end = time.perf_counter()


def _count(event: str, **_: str | int) -> None:
    global _hits
    _hits += event == _CACHE_HIT


jax.monitoring.register_event_duration_secs_listener(_note)
jax.monitoring.register_event_listener(_count)


def cache_hits() -> int:
    """How many programs this process found compiled on disk, which takes far less time than to compile them."""
    return _hits


def compile_seconds(since: float) -> float:
    """Seconds from `since` (of `time.perf_counter`) to the end of the last compilation; 0 if there was none.

    A jitted function traces, lowers and compiles before anything of it runs, so for a call that began at `since` this
    is what the compilation cost.
    """
    return max(_last_end - since, 0.0)

"""Compiling is told apart from decoding."""

import time

import jax
import jax.numpy as jnp
from tiny_pairs import answer

from kljudge_jax.generation import programs
from kljudge_jax.generation.compile_clock import compile_seconds


def test_a_call_that_compiles_says_for_how_long():
    began = time.perf_counter()
    assert compile_seconds(began) == 0
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
    ended = time.perf_counter()
    assert 0 < compile_seconds(began) <= ended - began
    assert compile_seconds(ended) == 0


def test_seconds_leave_compilation_out(pair, monkeypatch):
    answer(pair, "exact")
    began = time.perf_counter()
    stats = answer(pair, "exact").stats
    elapsed = time.perf_counter() - began
    assert stats.compile_seconds == 0
    assert 0 < stats.prefill_seconds < stats.seconds <= elapsed

    def compiling(call):
        def compiled(*args, **options):
            jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
            return call(*args, **options)

        return compiled

    for name in ("start", "run_cycles"):
        with monkeypatch.context() as patch:
            patch.setattr(programs, name, compiling(getattr(programs, name)))
            began = time.perf_counter()
            slow = answer(pair, "exact").stats
            elapsed = time.perf_counter() - began
        assert slow.compile_seconds > 0
        assert slow.seconds + slow.compile_seconds <= elapsed

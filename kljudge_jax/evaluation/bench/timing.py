"""A timer whose measurements take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kljudge_jax.generation.compile_clock import compile_seconds
from kljudge_jax.parallel.hosts import agreed
from kljudge_jax.progress_update import ProgressUpdate

# Samples shorter than this are made of several repetitions: a clock reading and a dispatch then weigh little.
SHORTEST_SAMPLE = 0.05


@dataclasses.dataclass(frozen=True)
class Probe:
    """Something to time.

    Attributes:
      run: `run(made, n)` does it n times, and returns arrays that exist once it is done.
      make: makes what `run` is given, untimed: `run` may donate it.
      most: the most repetitions of one sample.
    """

    run: Callable[[Any, int], Any]
    make: Callable[[], Any] = lambda: None
    most: int = 1000


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long one repetition of a probe took.

    Attributes:
      samples: seconds, one a round; in the order of the rounds, so that two probes' samples are pairs.
      repetitions: how many times a sample did it; the sample is their mean.
      compile_seconds: what its compilation took, once.
    """

    samples: tuple[float, ...]
    repetitions: int = 1
    compile_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The median over rounds."""
        return float(np.median(self.samples))

    def to_json(self) -> dict[str, float | int]:
        """Median and 10 to 90 % range in seconds, with the n they are of."""
        return {
            **spread(self.samples, "seconds"),
            "repetitions": self.repetitions,
            "compile_seconds": self.compile_seconds,
        }


def spread(samples, name: str) -> dict[str, float | int]:
    """The median of samples under `name`, their 10 and 90 % quantiles and their number, for JSON."""
    low, middle, high = np.quantile(np.asarray(samples, float), [0.1, 0.5, 0.9])
    return {name: float(middle), "low": float(low), "high": float(high), "rounds": len(samples)}


def added(*timings: Timing) -> Timing:
    """The time of several things one after another, round by round."""
    return Timing(tuple(float(sum(parts)) for parts in zip(*(t.samples for t in timings), strict=True)))


def measure(
    probes: Mapping[str, Probe],
    rounds: int,
    *,
    shortest: float = SHORTEST_SAMPLE,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Timing]:
    """Times every probe once a round.

    Before the rounds that count each probe runs to compile, and twice more to see how many repetitions make a sample
    of `shortest` seconds.

    Args:
      probes: by name, in the order in which they take turns.
      rounds: how many rounds count.
      shortest: seconds.
      clock: tells the time in seconds.
      report: told what is compiled, then of every round.
    """

    def sample(probe: Probe, repetitions: int) -> float:
        made = jax.block_until_ready(probe.make())
        began = clock()
        jax.block_until_ready(probe.run(made, repetitions))
        return (clock() - began) / repetitions

    compiled, repetitions = {}, {}
    for name, probe in probes.items():
        made = jax.block_until_ready(probe.make())
        began = time.perf_counter()  # the clock that `compile_seconds` reads
        jax.block_until_ready(probe.run(made, 1))
        compiled[name] = compile_seconds(began)
        report(ProgressUpdate(f"{name}: compiled in {compiled[name]:.1f} s", len(compiled), len(probes)))
    for name, probe in probes.items():
        n = 1
        for _ in range(2):  # the first one is mostly dispatch
            once = max(sample(probe, n), 1e-9)
            n = agreed(min(max(math.ceil(shortest / once), 1), max(probe.most, 1)))
        repetitions[name] = n
    samples: dict[str, list[float]] = {name: [] for name in probes}
    for done in range(1, rounds + 1):
        for name, probe in probes.items():
            samples[name].append(sample(probe, repetitions[name]))
        report(ProgressUpdate(f"round {done} of {rounds}", done, rounds))
    return {name: Timing(tuple(samples[name]), repetitions[name], compiled[name]) for name in probes}

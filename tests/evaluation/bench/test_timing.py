"""The timer, by a clock that only probes move."""

import pytest

from kljudge_jax.evaluation.bench.timing import Probe, Timing, added, measure, spread


class FakeWorld:
    """A clock, and probes whose runs take a dispatch and so many seconds a repetition, all of it noted down."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def probe(self, name, seconds, dispatch=0.0, most=1000):
        def make():
            self.now += 7  # untimed
            return name

        def run(made, n):
            assert made == name
            self.log.append((name, n))
            self.now += dispatch + n * seconds(len(self.log)) if callable(seconds) else dispatch + n * seconds

        return Probe(run, make, most)

    def clock(self):
        return self.now


def test_what_is_made_and_dispatched_weighs_little():
    world = FakeWorld()
    probes = {"short": world.probe("short", 0.001, dispatch=0.01), "long": world.probe("long", 3.0)}
    timings = measure(probes, 3, shortest=0.5, clock=world.clock)
    assert timings["long"].repetitions == 1 and timings["long"].samples == pytest.approx([3.0] * 3)
    # One repetition looks like 11 ms, 46 of them like 1.2 ms each: so many make half a second.
    assert timings["short"].repetitions == 411
    assert timings["short"].seconds == pytest.approx(0.001 + 0.01 / 411)


def test_probes_take_turns():
    world = FakeWorld()
    measure({name: world.probe(name, 1.0) for name in "abc"}, 4, clock=world.clock)
    names = [name for name, _ in world.log]
    assert names[:3] == ["a", "b", "c"]  # compiling
    assert names[3:9] == ["a", "a", "b", "b", "c", "c"]  # how many repetitions
    assert names[9:] == ["a", "b", "c"] * 4


def test_a_probe_is_never_repeated_more_often_than_it_can_be():
    world = FakeWorld()
    timings = measure({"a": world.probe("a", 1e-4, most=5)}, 2, clock=world.clock)
    assert timings["a"].repetitions == 5
    assert max(n for _, n in world.log) == 5


def test_a_compilation_is_told_and_counted():
    import jax
    import jax.numpy as jnp

    double = jax.jit(lambda x: 2 * x + 17)
    lines = []
    timings = measure({"a": Probe(lambda _, n: double(jnp.float32(n)))}, 1, shortest=0.0, report=lines.append)
    assert timings["a"].compile_seconds > 0
    assert lines == [f"a: compiled in {timings['a'].compile_seconds:.1f} s", "round 1 of 1"]


def test_figures_are_medians_with_their_range():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0), 10, 0.5)
    assert timing.seconds == 3.0
    found = timing.to_json()
    assert (found["seconds"], found["rounds"], found["repetitions"], found["compile_seconds"]) == (3.0, 5, 10, 0.5)
    assert found["low"] == pytest.approx(1.4) and found["high"] == pytest.approx(61.6)
    assert spread([2.0], "ratio") == {"ratio": 2.0, "low": 2.0, "high": 2.0, "rounds": 1}


def test_times_add_up_round_by_round():
    assert added(Timing((1.0, 2.0)), Timing((0.5, 0.25))).samples == (1.5, 2.25)

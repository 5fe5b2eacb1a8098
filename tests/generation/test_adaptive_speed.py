"""How fast an adaptive length is, on simulated clocks: timed blocks, drafts in vain, what a draft catches up and passes
wider than the draft are all counted."""

import numpy as np
import pytest
from simulated_runs import Machine, adaptive_run, fixed_run

import kljudge_jax as kj

WIDE = Machine(step=0.05, position=0.01, noise=0.02)  # a device bound by what it reads
SMALL = Machine(step=0.2, position=0.05, noise=0.02)
DRAFTS_OF_THE_TARGETS_SIZE = Machine(step=1.0, position=0.2, noise=0.02)
DEAR = Machine(step=0.38, position=0.05, noise=0.02)  # a draft a third the size of its target
BOUND = Machine(step=0.25, position=0.4, noise=0.02)  # a batch on a CPU, bound by arithmetic

NEVER_FASTER = [
    (WIDE, [0.0]),
    (WIDE, [0.0] * 16),
    (WIDE, [0.95] * 8 + [0.0] * 8),
    (SMALL, [0.0]),
    (SMALL, [0.3]),
    (SMALL, [0.95] + [0.3] * 15),
    (SMALL, [0.95] * 8 + [0.0] * 8),
    (BOUND, [0.0]),
    (BOUND, [0.6] * 16),
    (BOUND, [0.95] + [0.3] * 15),
    (DRAFTS_OF_THE_TARGETS_SIZE, [0.0]),
    (DRAFTS_OF_THE_TARGETS_SIZE, [0.5] * 4),
]


@pytest.mark.parametrize(("machine", "rates"), NEVER_FASTER)
def test_a_batch_is_never_below_nine_tenths_of_plain_decoding(machine, rates):
    """From 256 tokens on in the first run of a program, which is timed; from 64 on in every later one."""
    for seed in range(2 if len(rates) == 1 else 1):
        program = object()
        assert adaptive_run(machine, kj.Adaptive(), rates, 256, seed, program)[0] <= 256 / 0.9
        for tokens in (64, 128, 512):
            assert adaptive_run(machine, kj.Adaptive(), rates, tokens, seed, program)[0] <= tokens / 0.9


def test_costs_that_are_given_keep_to_it_too():
    for rates in ([0.0], [0.95] * 8 + [0.0] * 8):
        time, lengths = adaptive_run(SMALL, kj.Adaptive(cost="size"), rates, 256)
        assert any(lengths) and time <= 256 / 0.9


@pytest.mark.parametrize(
    ("machine", "rates"), [(WIDE, [0.9]), (WIDE, [0.7] * 16), (SMALL, [0.85]), (SMALL, [0.9] * 8 + [0.7] * 8)]
)
def test_where_drafts_pay_it_is_as_fast_as_the_best_length(machine, rates):
    """94 % of it, once the costs are known."""
    adaptive, tokens = kj.Adaptive(), 512
    program = object()
    adaptive_run(machine, adaptive, rates, tokens, 9, program)
    mine = np.mean([adaptive_run(machine, adaptive, rates, tokens, seed, program)[0] for seed in range(8)])
    assert mine <= best_fixed(machine, adaptive, rates, tokens) / 0.94


def test_a_dear_draft_that_pays_is_not_given_up_for_one_bad_start():
    """90 % of the best length, over processes whose first runs begin well or badly."""
    adaptive, tokens, times = kj.Adaptive(), 512, []
    for first in range(12):
        program = object()
        for seed in (first, 100 + first, 200 + first):
            times.append(adaptive_run(DEAR, adaptive, [0.85], tokens, seed, program, estimate=0.43)[0])
    assert np.mean(times) <= best_fixed(DEAR, adaptive, [0.85], tokens) / 0.9


def best_fixed(machine, adaptive, rates, tokens):
    """What the best fixed length takes."""
    best = min(np.mean([fixed_run(machine, adaptive, n, rates, tokens, seed) for seed in range(40)]) for n in range(9))
    assert best < 0.8 * tokens
    return best

"""Runs of an adaptive length on a simulated clock, where every cycle has a known cost: what a run takes against plain
decoding, and against the best fixed length, all that it spends counted."""

import dataclasses

import jax
import numpy as np

import kljudge_jax as kj
from kljudge_jax.core.controller import Pace
from kljudge_jax.drafters.model_draft import CATCH_UP
from kljudge_jax.generation.costs import CycleCosts

_BOUND, _UPDATE = (jax.jit(method, static_argnums=0) for method in (kj.Adaptive.bound, kj.Adaptive.update))


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a cycle takes, in plain cycles.

    Attributes:
      step: a draft step.
      position: one more position of a target pass.
      block: what the host adds to a block of cycles.
      noise: the spread of a block's time.
    """

    step: float
    position: float
    block: float = 0.05
    noise: float = 0.0

    def cycle(self, adaptive, length, idle=0):
        """A cycle with `length` draft tokens after `idle` cycles without one: the pass has one of the widths that are
        compiled, and the draft first takes what it was not asked for."""
        if not length:
            return 1.0
        width = min(w for w in adaptive.widths() if w >= length)
        piece = self.step * (1 + self.position * (CATCH_UP - 1))
        return 1 + length * self.step + width * self.position + piece * np.ceil(idle / CATCH_UP)


def accepted_of(random, rates, length):
    """How many of `length` draft tokens are accepted, int `[B]`."""
    return np.cumprod(random.random((len(rates), length)) < rates[:, None], axis=1).sum(axis=1)


def adaptive_run(machine, adaptive, rates, tokens, seed=0, program=None, estimate=0.25):
    """Plain cycles' time that a batch takes, all rows for `tokens` tokens; and its lengths, cycle by cycle.

    It goes on with what earlier runs of the `program` measured, if one is given. By the models' sizes a draft token
    costs `estimate`.
    """
    random, rates = np.random.default_rng(seed), np.asarray(rates, float)
    costs = CycleCosts.of(program or object(), adaptive, estimate)
    static, state = adaptive.without_cost(), Pace.start(np.zeros(len(rates), np.int32))
    count, time, lengths, idle = np.zeros(len(rates), np.int32), 0.0, [], 0
    while (count < tokens).any():
        asked = costs.next()
        table = costs.table() if asked is None else costs.only(asked[0])
        seconds, drafts, before = machine.block, [], count.copy()
        while (count < tokens).any() and (asked is None or len(drafts) < asked[1]):
            left = np.where(count < tokens, tokens - count - 1, -1).astype(np.int32)
            wanted = np.clip(left, 0, int(_BOUND(static, state, table, left))).astype(np.int32)
            longest = int(wanted.max())
            accepted = np.minimum(accepted_of(random, rates, adaptive.maximum), wanted).astype(np.int32)
            state = _UPDATE(static, state, wanted, wanted, accepted)
            seconds += machine.cycle(adaptive, longest, idle)
            idle = 0 if longest else idle + 1
            count += np.where(left >= 0, accepted + 1, 0).astype(np.int32)
            drafts.append(longest)
        time += seconds
        lengths += drafts
        if asked is not None:
            clock = 0.01 * seconds * np.exp(machine.noise * random.standard_normal())
            slowest = float((count - before).min()) / len(drafts)
            costs.took(asked[0], np.asarray(drafts), asked[1], slowest, clock)
    return time, lengths


def fixed_run(machine, adaptive, length, rates, tokens, seed=0):
    """The same with `length` draft tokens in every cycle."""
    random, rates = np.random.default_rng(seed), np.asarray(rates, float)
    count, time = np.zeros(len(rates), int), machine.block
    while (count < tokens).any():
        accepted = accepted_of(random, rates, length) if length else 0
        count = np.minimum(count + accepted + 1, tokens)
        time += machine.cycle(adaptive, length)
    return time

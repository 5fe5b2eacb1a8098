"""What the demonstration measured: its `summary.json`."""

from __future__ import annotations

from typing import Literal

from kljudge_jax.evaluation.sweep.records import SweepRow
from kljudge_jax.machine import Machine
from kljudge_jax.records import Count, Record


class SpeedRatio(Record, frozen=True, kw_only=True):
    """Tokens per second of answers decoded alone, and how many times those of plain decoding, with its interval."""

    tokens_per_second: float
    ratio: float
    interval: tuple[float, float]


class DemoRow(SweepRow, frozen=True, kw_only=True):
    """A row of the demonstration's table: the figures of a sweep's cell, and the speed of answers decoded alone.

    Attributes:
      draft: what proposed: the pair's small model, or a head of its target; None in plain decoding.
      one_by_one: of some of the problems.
    """

    draft: Literal["model", "head"] | None
    one_by_one: SpeedRatio


class DemoSummary(Record, frozen=True, kw_only=True):
    """On what the demonstration ran, and its rows (`summary.json` of `kljudge demo`; 0.1.0 wrote the first version).

    Attributes:
      task: its name. n, seed: how many of its test problems, and in which order.
      machine: on which it ran.
      cells: plain decoding first, then the rules with the model, then those with the head.
    """

    schema: Literal[2] = 2
    kind: Literal["demo"] = "demo"
    task: str
    n: Count
    seed: int
    machine: Machine
    cells: tuple[DemoRow, ...]

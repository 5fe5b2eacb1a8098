"""What a run cost and what it kept: counts of one answer, and their pool over a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kljudge_jax.generation.display import stats_html


@dataclasses.dataclass(frozen=True)
class Cycle:
    """One target pass of one answer.

    Attributes:
      drafted: draft tokens put before the target.
      accepted: draft tokens that were committed.
      committed: all tokens committed, correction or bonus included.
    """

    drafted: int
    accepted: int
    committed: int


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counts of one answer, or of a batch pooled over all its cycles. Only committed tokens count.

    Attributes:
      tokens: tokens committed.
      cycles: target passes after the prompt's.
      drafted: draft tokens put before the target.
      accepted: draft tokens committed.
      relaxed: those of them that the strict rule would have rejected.
      acceptance_histogram: int `[K + 1]`, how many cycles committed n draft tokens.
      seconds: wall-clock time of the call, compilation left out; of a row, from when its prompt was begun to when the
        host saw that it had ended.
      prefill_seconds: the part of `seconds` that the prompts took; of a row, that of the prompts begun with its own.
      compile_seconds: what compilation took on top.
      own_seconds: of a row, its part of the call's `seconds`, which the rows add up to: the time of a block of cycles
        is divided among the rows by the cycles that each ran in it, that of prompts equally.
      slot_cycles: row-cycles that the device computed, `slots` a cycle, whether a row was running in them or not; of a
        row, its part of them, divided alike.
      finish: why it ended: "eos", "length", "stop", or "failed" (a model returned NaN or +inf); "" for a pool.
      failed: answers that failed.
      draft_failed: answers that the target went on with alone, since the draft returned NaN or +inf under a lossless
        rule.
      plain_cycles: target passes with nothing drafted.
      rows: the answers of a pool.
    """

    tokens: int
    cycles: int
    drafted: int
    accepted: int
    relaxed: int
    acceptance_histogram: np.ndarray
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    compile_seconds: float = 0.0
    own_seconds: float = 0.0
    slot_cycles: float = 0.0
    finish: str = ""
    failed: int = 0
    draft_failed: int = 0
    plain_cycles: int = 0
    rows: tuple[Stats, ...] = ()

    @property
    def finish_reason(self) -> str:
        """`finish`, by the name that other libraries give it."""
        return self.finish

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens committed per target pass, correction or bonus included."""
        return self.tokens / self.cycles if self.cycles else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """The share of the draft's tokens that were committed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens committed per second of `seconds`, prompts included, compilation not."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def slot_occupancy(self) -> float:
        """The share of the device's row-cycles that went into these answers; the rest was spent on ended rows."""
        return self.cycles / self.slot_cycles if self.slot_cycles else 0.0

    def _repr_html_(self) -> str:
        return stats_html(self)

    def to_json(self) -> dict:
        """The same as plain numbers, for JSON."""
        return {
            "tokens": self.tokens,
            "cycles": self.cycles,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "relaxed": self.relaxed,
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_histogram": self.acceptance_histogram.tolist(),
            "seconds": self.seconds,
            "prefill_seconds": self.prefill_seconds,
            "compile_seconds": self.compile_seconds,
            "own_seconds": self.own_seconds,
            "slot_cycles": self.slot_cycles,
            "tokens_per_second": self.tokens_per_second,
            "failed": self.failed,
            "draft_failed": self.draft_failed,
            "plain_cycles": self.plain_cycles,
            **({"finish": self.finish} if self.finish else {}),
        }


def row_stats(cycles: Sequence[Cycle], relaxed: int, draft_length: int, finish: str, **others: Any) -> Stats:
    """The counts of one answer from its cycles."""
    accepted = np.array([c.accepted for c in cycles], np.int64)
    return Stats(
        tokens=sum(c.committed for c in cycles),
        cycles=len(cycles),
        drafted=sum(c.drafted for c in cycles),
        accepted=int(accepted.sum()),
        relaxed=relaxed,
        acceptance_histogram=np.bincount(accepted, minlength=draft_length + 1),
        finish=finish,
        failed=int(finish == "failed"),
        plain_cycles=sum(c.drafted == 0 for c in cycles),
        **others,
    )


def pool(rows: Sequence[Stats], **times: float) -> Stats:
    """The counts of a call: sums over its rows. Its `times`, if none are given, are those of the first row."""

    def total(name):
        return sum(getattr(row, name) for row in rows)

    shared = {name: getattr(rows[0], name) for name in ("seconds", "prefill_seconds", "compile_seconds")}
    return Stats(
        tokens=total("tokens"),
        cycles=total("cycles"),
        drafted=total("drafted"),
        accepted=total("accepted"),
        relaxed=total("relaxed"),
        acceptance_histogram=np.sum([row.acceptance_histogram for row in rows], axis=0),
        own_seconds=total("own_seconds"),
        **({"slot_cycles": total("slot_cycles")} | shared | times),
        failed=total("failed"),
        draft_failed=total("draft_failed"),
        plain_cycles=total("plain_cycles"),
        rows=tuple(rows),
    )


def cut_cycles(cycles: Sequence[Cycle], tokens: int) -> list[Cycle]:
    """The cycles of an answer's first `tokens` tokens; of the cycle that is cut, only those tokens are committed."""
    kept = []
    for cycle in cycles:
        if tokens <= 0:
            break
        committed = min(cycle.committed, tokens)
        kept.append(Cycle(cycle.drafted, min(cycle.accepted, committed), committed))
        tokens -= committed
    return kept

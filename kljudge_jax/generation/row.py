"""One answer as the host knows it, whole or in the making."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from kljudge_jax.core.state import ORIGINS, RELAXED, from_draft
from kljudge_jax.generation.stats import Cycle, Stats, cut_cycles, row_stats
from kljudge_jax.parallel.hosts import fetch

# What the host is told of every slot.
FIELDS = (
    "sequence",
    "length",
    "origin",
    "count",
    "running",
    "failed",
    "alone",
    "cycles",
    "cycle_drafted",
    "cycle_committed",
)
TRACED_FIELDS = ("kl", "logprobs")


@dataclasses.dataclass(frozen=True)
class Row:
    """The new tokens of one prompt, T of them in C cycles, up to where a stop string cut them.

    Attributes:
      tokens: int32 `[T]`.
      codes: int8 `[T]`, their origins, indices into `ORIGINS`.
      cycles: C of them.
      running: not ended yet.
      failed: a model returned NaN or +inf.
      alone: the draft did, and the target went on without it.
      text: where a stop string cut it, its text; else None.
      kl, logprobs: f32 `[T]`, or None without a trace.
    """

    tokens: np.ndarray
    codes: np.ndarray
    cycles: list[Cycle]
    running: bool
    failed: bool
    alone: bool
    text: str | None = None
    kl: np.ndarray | None = None
    logprobs: np.ndarray | None = None

    @classmethod
    def of(cls, known: Mapping[str, np.ndarray], slot: int) -> Row:
        """What `known`, the fields of a state, says of a slot; in memory of its own."""
        count, length = int(known["count"][slot]), int(known["length"][slot])
        codes, cycles, at = known["origin"][slot, :count].copy(), [], 0
        ran = int(known["cycles"][slot])
        drafted, committed = (known[name][slot, :ran].tolist() for name in ("cycle_drafted", "cycle_committed"))
        accepted = from_draft(codes)
        for proposed, kept in zip(drafted, committed, strict=True):
            cycles.append(Cycle(proposed, int(np.sum(accepted[at : at + kept])), kept))
            at += kept
        return cls(
            tokens=known["sequence"][slot, length - count : length].copy(),
            codes=codes,
            cycles=cycles,
            running=bool(known["running"][slot]),
            failed=bool(known["failed"][slot]),
            alone=bool(known["alone"][slot]),
            kl=known["kl"][slot, :count].copy() if "kl" in known else None,
            logprobs=known["logprobs"][slot, :count].copy() if "logprobs" in known else None,
        )

    def cut(self, tokens: int, text: str) -> Row:
        """The row up to where a stop string begins: so many tokens, and their text."""
        return dataclasses.replace(
            self,
            tokens=self.tokens[:tokens],
            codes=self.codes[:tokens],
            cycles=cut_cycles(self.cycles, tokens),
            running=False,
            text=text,
            **{name: getattr(self, name)[:tokens] for name in TRACED_FIELDS if getattr(self, name) is not None},
        )

    @property
    def origin(self) -> list[str]:
        return [ORIGINS[code] for code in self.codes]

    def text_tokens(self, eos: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
        """The tokens that are text, and their origins: all but an EOS at the end."""
        end = len(self.tokens) - self._ended(eos)
        return self.tokens[:end], self.origin[:end]

    def stats(self, draft_length: int, eos: tuple[int, ...], **times: float) -> Stats:
        """Its counts."""
        if self.text is not None:
            finish = "stop"
        elif self.failed:
            finish = "failed"
        else:
            finish = "eos" if self._ended(eos) else "length"
        relaxed = int(np.sum(self.codes == RELAXED))
        return row_stats(self.cycles, relaxed, draft_length, finish, draft_failed=int(self.alone), **times)

    def _ended(self, eos: tuple[int, ...]) -> bool:
        return bool(len(self.tokens)) and int(self.tokens[-1]) in eos


def fetch_state(state, trace: bool) -> dict[str, np.ndarray]:
    """What the host is told of a state."""
    return fetch({name: getattr(state, name) for name in FIELDS + (TRACED_FIELDS if trace else ())})

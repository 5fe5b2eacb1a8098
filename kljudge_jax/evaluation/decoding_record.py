"""How answers were decoded, as files hold it: what a bench and a sweep have in common of `DecodingConfig`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from kljudge_jax.records import Count, Record


class DecodingRecord(Record, frozen=True, kw_only=True):
    """`kljudge_jax.DecodingConfig`'s fields. Those that 0.1.0 did not always write have defaults.

    `section_ids` are two ids or two texts; None is "auto", and none at all is "none".
    """

    max_new_tokens: Count
    temperature: float = 0.0
    top_k: Count = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    drafter: str = "model"
    seed: int = 0
    section_ids: tuple[int | str, int | str] | Literal["none"] | None = None
    template_args: dict[str, Any] = msgspec.field(default_factory=dict)

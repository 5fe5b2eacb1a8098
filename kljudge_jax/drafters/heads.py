"""Which drafter a pair's draft is made for, where it is no model that writes tokens by itself."""

from __future__ import annotations

from typing import Any

from kljudge_jax.core.protocols import Drafter
from kljudge_jax.drafters.dflash_draft import DFlashDraft
from kljudge_jax.drafters.eagle3_draft import Eagle3Draft
from kljudge_jax.models.dflash import DFlashHead
from kljudge_jax.models.eagle3 import Eagle3Head


def drafter_of(draft: Any) -> Drafter | None:
    """What drafts with a head; None of a model, and of what is no draft of ours."""
    if isinstance(draft, Eagle3Head):
        return Eagle3Draft(draft.config.layers)
    if isinstance(draft, DFlashHead):
        return DFlashDraft(draft.config.layers, draft.config.block_size)
    return None

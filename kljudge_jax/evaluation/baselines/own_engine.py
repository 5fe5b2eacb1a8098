"""Baselines that our own engine runs: the draft model alone, and exact decoding with drafts that are looked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from kljudge_jax.drafters.prompt_lookup import PromptLookup
from kljudge_jax.evaluation.baselines.base import Answer, Request, answers_of
from kljudge_jax.generation.generate import generate
from kljudge_jax.models.pair import ModelPair


@dataclasses.dataclass(frozen=True)
class DraftAlone:
    """Plain decoding with the draft model: what the pair's speed would be without a target, and its accuracy.

    Its `cycles` are passes of the draft.
    """

    drafts: ClassVar[bool] = False
    needs_draft: ClassVar[bool] = True

    def check(self) -> None:
        """It runs wherever we do."""

    def answer(self, pair: ModelPair, prompts: Sequence[Any], request: Request) -> list[Answer]:
        """See `Baseline`."""
        assert pair.draft is not None
        alone = ModelPair(pair.draft, None, pair.tokenizer, pair.eos, pair.draft_name, "none")
        return answers_of(generate(alone, prompts, verifier=None, **_options(request)))


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Exact decoding of drafts from `PromptLookup(ngram)`: what speculation gains without a draft model."""

    ngram: int = 3

    drafts: ClassVar[bool] = True
    needs_draft: ClassVar[bool] = False

    def check(self) -> None:
        """It runs wherever we do."""

    def answer(self, pair: ModelPair, prompts: Sequence[Any], request: Request) -> list[Answer]:
        """See `Baseline`."""
        options = _options(request) | {"drafter": PromptLookup(self.ngram)}
        out = generate(pair, prompts, verifier="exact", **options)
        return answers_of(out)


def _options(request: Request) -> dict[str, Any]:
    told = request.answered
    return request.config.arguments() | {
        "key": request.key,
        "batch_size": request.config.batch,
        "answered": None if told is None else lambda i, out: told(i, answers_of(out)[0]),
    }

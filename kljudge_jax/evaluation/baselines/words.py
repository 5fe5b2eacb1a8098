"""Baselines by their command-line word: `draft`, `lookup:3`, `hf`, `hf:assisted`, `hf:lookup`."""

from __future__ import annotations

from collections.abc import Iterable

from kljudge_jax.drafters.prompt_lookup import PromptLookup
from kljudge_jax.drafters.words import parse_drafter
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines.base import Baseline
from kljudge_jax.evaluation.baselines.hugging_face import HFAssisted, HFGenerate, HFLookup
from kljudge_jax.evaluation.baselines.own_engine import DraftAlone, Lookup
from kljudge_jax.spec import read_spec

_HF = "hf"


def check_baselines(words: Iterable[str], has_draft: bool) -> None:
    """Raises InputError unless the baselines among these words can run here, with or without a draft model."""
    found = {word: baseline for word in words if (baseline := parse_baseline(word)) is not None}
    for word, baseline in found.items():
        if baseline.needs_draft and not has_draft:
            raise InputError(f"{word!r} needs a draft model: name a --draft, or leave it out")
    for baseline in found.values():
        baseline.check()


def parse_baseline(word: str) -> Baseline | None:
    """The baseline that a word of the command line stands for; None if the word may be a rule's.

    Raises:
      InputError: the word begins as a baseline's and is none.
    """
    name, items = read_spec(word)
    if name == "draft":
        if items:
            raise InputError(f"write 'draft' alone: the draft by itself takes no parameters, not {word!r}")
        return DraftAlone()
    if name == "lookup":
        return Lookup(_ngram(word))
    if name != _HF:
        return None
    if not items:
        return HFGenerate()
    inner = word.partition(":")[2].strip()
    if inner == "assisted":
        return HFAssisted()
    if read_spec(inner)[0] == "lookup":
        return HFLookup(_ngram(inner))
    raise InputError(f"write 'hf', 'hf:assisted' or 'hf:lookup:3' for Transformers' own decoding, not {word!r}")


def _ngram(word: str) -> int:
    """Of `lookup` or `lookup:3`."""
    drafter = parse_drafter(word)
    assert isinstance(drafter, PromptLookup)
    return drafter.ngram

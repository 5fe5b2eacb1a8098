"""Baselines by their spec strings: `draft`, `lookup:3`, `hf`, `hf:assisted`, `hf:lookup`."""

from __future__ import annotations

from collections.abc import Iterable

from kljudge_jax.drafters.prompt_lookup import PromptLookup
from kljudge_jax.drafters.specs import parse_drafter
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines.base import Baseline
from kljudge_jax.evaluation.baselines.hugging_face import HFAssisted, HFGenerate, HFLookup
from kljudge_jax.evaluation.baselines.own_engine import DraftAlone, Lookup
from kljudge_jax.spec import read_spec

_HF = "hf"


def check_baselines(specs: Iterable[str], has_draft: bool) -> None:
    """Raises InputError unless the baselines among these specs can run here, with or without a draft model."""
    found = {spec: baseline for spec in specs if (baseline := parse_baseline(spec)) is not None}
    for spec, baseline in found.items():
        if baseline.needs_draft and not has_draft:
            raise InputError(f"{spec!r} needs a draft model: name a --draft, or leave it out")
    for baseline in found.values():
        baseline.check()


def parse_baseline(spec: str) -> Baseline | None:
    """The baseline that a spec string stands for; None if the spec may be a rule's.

    Raises:
      InputError: the spec begins as a baseline's and is none.
    """
    name, items = read_spec(spec)
    if name == "draft":
        if items:
            raise InputError(f"write 'draft' alone: the draft by itself takes no parameters, not {spec!r}")
        return DraftAlone()
    if name == "lookup":
        return Lookup(_ngram(spec))
    if name != _HF:
        return None
    if not items:
        return HFGenerate()
    inner = spec.partition(":")[2].strip()
    if inner == "assisted":
        return HFAssisted()
    if read_spec(inner)[0] == "lookup":
        return HFLookup(_ngram(inner))
    raise InputError(f"write 'hf', 'hf:assisted' or 'hf:lookup:3' for Transformers' own decoding, not {spec!r}")


def _ngram(spec: str) -> int:
    """Of `lookup` or `lookup:3`."""
    drafter = parse_drafter(spec)
    assert isinstance(drafter, PromptLookup)
    return drafter.ngram

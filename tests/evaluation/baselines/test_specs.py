"""Baselines by their specs, and what is refused before anything is loaded."""

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines import check_baselines, parse_baseline
from kljudge_jax.evaluation.baselines.hugging_face import HFAssisted, HFGenerate, HFLookup
from kljudge_jax.evaluation.baselines.own_engine import DraftAlone, Lookup
from kljudge_jax.verification.rule import RULES


@pytest.mark.parametrize(
    ("spec", "baseline"),
    [
        ("draft", DraftAlone()),
        ("lookup", Lookup(3)),
        ("lookup:2", Lookup(2)),
        ("lookup:ngram=5", Lookup(5)),
        ("hf", HFGenerate()),
        ("hf:assisted", HFAssisted()),
        ("hf:lookup", HFLookup(3)),
        ("hf:lookup:2", HFLookup(2)),
    ],
)
def test_words(spec, baseline):
    assert parse_baseline(spec) == baseline


def test_the_words_of_rules_are_left_to_them():
    assert {parse_baseline(spec) for spec in {rule.spec_name for rule in RULES} | {"none", "kl:0.4", "magic"}} == {None}


@pytest.mark.parametrize("spec", ["draft:3", "lookup:0", "lookup:x", "hf:", "hf:magic", "hf:lookup:0", "hf:assisted:3"])
def test_what_is_no_baseline_is_refused(spec):
    with pytest.raises(InputError):
        parse_baseline(spec)


def test_a_baseline_that_drafts_with_a_model_needs_one():
    check_baselines(["none", "draft", "hf:assisted"], has_draft=True)
    check_baselines(["exact", "lookup:3", "hf", "hf:lookup"], has_draft=False)
    for spec in ("draft", "hf:assisted"):
        with pytest.raises(InputError, match=f"'{spec}' needs a draft model"):
            check_baselines(["none", spec], has_draft=False)

"""Drafters and draft lengths by their specs."""

import pytest

import kljudge_jax as kj
from kljudge_jax.drafters.specs import parse_draft_length, parse_drafter
from kljudge_jax.errors import InputError


@pytest.mark.parametrize(
    ("spec", "drafter"),
    [
        ("model", kj.ModelDraft()),
        ("lookup", kj.PromptLookup()),
        ("lookup:2", kj.PromptLookup(2)),
        (" lookup : ngram = 4 ", kj.PromptLookup(4)),
        ("self:2", kj.SelfDraft(2)),
    ],
)
def test_a_word_is_a_drafter(spec, drafter):
    assert parse_drafter(spec) == drafter


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        ("8", 8),
        ("adaptive", kj.Adaptive()),
        ("adaptive:1,16", kj.Adaptive(1, 16)),
        ("adaptive:4", kj.Adaptive(0, 4)),
        ("adaptive:maximum=4,confidence=0.4,cost=0.2", kj.Adaptive(0, 4, 0.4, 0.2)),
    ],
)
def test_a_word_is_a_draft_length(spec, length):
    assert parse_draft_length(spec) == length


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lookups", "choose a drafter of model, lookup, self"),
        ("model:1", "write 'model'"),
        ("self", "give 'self' its numbers, as in 'self:layers=...'"),
        ("self:0", "from 1 on as its layers"),
        ("lookup:two", "a number as its ngram"),
        ("lookup:2,3", "write 'lookup:ngram=3'"),
        ("lookup:2,ngram=3", "its ngram once, not twice"),
    ],
)
def test_drafters_that_cannot_be_meant_are_refused_in_one_sentence(spec, says):
    with pytest.raises(InputError) as error:
        parse_drafter(spec)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["0", "-1", "2.5", "", "long", "8:2", "adaptive:9,4", "adaptive:length=4"])
def test_lengths_that_cannot_be_meant_are_refused(spec):
    with pytest.raises(InputError):
        parse_draft_length(spec)

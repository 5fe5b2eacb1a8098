"""The draft alone, and exact decoding of looked-up drafts, as baselines of a sweep."""

import jax
import numpy as np
import pytest
from tiny_pairs import DRAFT_LENGTH, PROMPTS, answer, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.evaluation.baselines.base import Request
from kljudge_jax.evaluation.baselines.own_engine import DraftAlone, Lookup
from kljudge_jax.generation.config import DecodingConfig


@pytest.fixture(scope="module")
def pair():
    return tiny_pair()


def request():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(len(PROMPTS)))
    return Request(DecodingConfig(24, draft_length=DRAFT_LENGTH), keys)


def test_the_draft_alone_is_the_draft_in_the_place_of_the_target(pair):
    answers = DraftAlone().answer(pair, PROMPTS, request())
    alone = answer(kj.ModelPair(pair.draft, eos=pair.eos), None)
    assert tokens_of(answers_tokens(answers)) == tokens_of(alone) != tokens_of(answer(pair, None))
    assert all(a.stats.cycles == a.stats.tokens and a.stats.drafted == 0 for a in answers)


def test_lookup_writes_the_targets_answers_whatever_it_drafts(pair):
    answers = Lookup(2).answer(pair, PROMPTS, request())
    ours = answer(pair, "exact", drafter=kj.PromptLookup(2))
    assert tokens_of(answers_tokens(answers)) == tokens_of(ours) == tokens_of(answer(pair, None))
    assert [a.stats.cycles for a in answers] == [row.cycles for row in ours.stats.rows]
    assert sum(a.stats.accepted for a in answers) > 0
    assert all(a.batch == 0 and set(a.notes) == {"origin"} for a in answers)


class answers_tokens:
    def __init__(self, answers):
        self.tokens = [a.tokens for a in answers]

"""Perplexity against the definition, and of a model in fewer bits beside itself."""

import math

import numpy as np
import pytest
from tiny_pairs import VOCAB_SIZE, forced, rounded, tiny_model

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.perplexity import Perplexity, perplexity, perplexity_table

TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 50).tolist()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_it_is_that_of_the_definition(model):
    found = perplexity(model, TOKENS, prefix=3, window=64)
    logits = forced(model, [3, *TOKENS])[0].astype(np.float64)[:-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mean = -np.mean([row[token] for row, token in zip(logprobs, TOKENS, strict=True)])
    assert found.value == pytest.approx(math.exp(mean), rel=1e-4)


def test_windows_cover_each_token_once(model):
    found = perplexity(model, TOKENS, prefix=3, window=16)
    assert found.tokens.tolist() == [16, 16, 16, 2] and len(found.nats) == 4


def test_fewer_bits_are_smaller_and_lose_more(model):
    whole, eight = (perplexity(m, TOKENS, 3, 16) for m in (model, rounded(model)))
    assert eight.weight_bytes < whole.weight_bytes and eight.precision == "int8 (float32)"
    share, (low, high) = eight.beside(whole)
    assert share == pytest.approx(eight.value / whole.value - 1) and low <= share <= high
    assert whole.beside(whole) == (0, (0, 0))


def test_the_interval_covers_a_known_difference():
    random, covered = np.random.default_rng(1), 0
    for _ in range(200):
        tokens = np.full(40, 16)
        first = random.normal(40, 5, 40)
        more = first + random.normal(0.01 * 16, 0.5, 40)
        _, (low, high) = Perplexity("b", 1, tokens, more).beside(Perplexity("a", 1, tokens, first), 400)
        covered += low <= math.expm1(0.01) <= high
    assert 180 <= covered <= 200


def test_no_text_is_refused(model):
    with pytest.raises(InputError, match="the text is empty"):
        perplexity(model, [], 3)


def test_a_table_sets_the_others_beside_the_first():
    cells = perplexity_table(
        [Perplexity(n, 10**9, np.array([2, 2]), np.array(x)) for n, x in (("a", [2, 2]), ("b", [3, 3]))]
    )
    assert cells[1:] == [["a", "1 GB", "2.7183", "", ""], ["b", "1 GB", "4.4817", "+64.87%", "+64.87% to +64.87%"]]

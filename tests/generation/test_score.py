"""One pass over given tokens says what one token after another says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import forced, prefilled, tiny_config

import kljudge_jax as kj
from kljudge_jax.core.protocols import Features
from kljudge_jax.core.scorers import DraftScorer
from kljudge_jax.core.state import Prefill
from kljudge_jax.errors import InputError
from kljudge_jax.generation.score import CPU_CHUNK, PREFILL_CHUNK, count_shared_chunks
from kljudge_jax.models.cache import KVCache

CAPACITY = 2 * PREFILL_CHUNK


def random_tokens(batch, length, seed=0):
    return np.random.default_rng(seed).integers(1, tiny_config().vocab_size, (batch, length)).astype(np.int32)


def test_scores_are_those_of_one_token_after_another(pair):
    tokens = random_tokens(2, 12)
    logits, hidden = kj.score(pair.target, tokens)
    assert logits.shape == (2, 12, pair.target.config.vocab_size) and logits.dtype == jnp.float32
    assert hidden.shape == (2, 12, pair.target.config.hidden_size)

    step = jax.jit(lambda model, token, cache: model(token, cache))
    cache = KVCache.create(pair.target.config, 2, 12)
    for t in range(12):
        features, cache = step(pair.target, tokens[:, t : t + 1], cache)
        state = features.hidden
        np.testing.assert_allclose(state[:, 0], hidden[:, t], atol=1e-5)
        np.testing.assert_allclose(pair.target.logits(state[:, 0]), logits[:, t], atol=1e-4)
    # Padding on the right changes nothing before it.
    np.testing.assert_allclose(forced(pair.target, tokens[0])[0], logits[0], atol=1e-5)


# As on a CPU, and as on all else.
every_plan = pytest.mark.parametrize(
    "plan", [Prefill(CPU_CHUNK, one_by_one=True), Prefill(PREFILL_CHUNK)], ids=["one by one", "together"]
)


@every_plan
def test_a_prefix_that_all_prompts_share_is_computed_once(pair, plan):
    model, lengths = pair.target, np.array([CAPACITY, PREFILL_CHUNK + 3])
    prompts = random_tokens(2, CAPACITY)
    prompts[:, :PREFILL_CHUNK] = prompts[0, :PREFILL_CHUNK]

    @jax.jit
    def consumed(model, prompts, shared):
        cache = prefilled(model, prompts, lengths, CAPACITY, shared * PREFILL_CHUNK, plan)
        return cache.keys, cache.length

    (apart, _), (together, length) = (consumed(model, prompts, shared) for shared in (0, 1))
    np.testing.assert_array_equal(length, lengths - 1)
    for one, other in zip(apart, together, strict=True):
        for row, end in enumerate(lengths - 1):
            np.testing.assert_allclose(one[row, :, :end], other[row, :, :end], atol=1e-5)
    # Told that they share a chunk, it looks at the first row's alone.
    other = np.where(np.arange(CAPACITY) < PREFILL_CHUNK, np.array([[0], [1]]), 0) + prompts
    keys, _ = consumed(model, other, 1)
    np.testing.assert_array_equal(keys[-1][0, :, :PREFILL_CHUNK], keys[-1][1, :, :PREFILL_CHUNK])


class Passes:
    """In place of a model: notes where each row of a pass begins, and how many tokens it has."""

    def __init__(self):
        self.seen = []

    def init_cache(self, batch, slots):
        return KVCache.create(tiny_config(), batch, slots)

    def logits(self, hidden):
        return hidden

    def __call__(self, tokens, cache):
        jax.debug.callback(lambda start: self.seen.extend((int(at), tokens.shape[1]) for at in start), cache.length)
        return Features(tokens[..., None]), cache


@pytest.mark.parametrize("shared", [0, 1])
def test_no_prompt_pays_for_the_length_of_another_where_they_go_one_by_one(shared):
    passes, lengths = Passes(), np.array([CAPACITY, PREFILL_CHUNK + 34, PREFILL_CHUNK + 2])
    prompts = jnp.asarray(random_tokens(3, CAPACITY))
    jax.jit(lambda: prefilled(passes, prompts, lengths, CAPACITY, shared * PREFILL_CHUNK).length)()
    jax.effects_barrier()
    begins = [0, *[shared * PREFILL_CHUNK] * 2]
    consumed = [range(first, length - 1, CPU_CHUNK) for first, length in zip(begins, lengths, strict=True)]
    assert sorted(passes.seen) == sorted((at, CPU_CHUNK) for row in consumed for at in row)


@pytest.mark.parametrize(
    ("alike", "shortest", "chunks"),
    [
        (0, CAPACITY, 0),
        (PREFILL_CHUNK - 1, CAPACITY, 0),
        (PREFILL_CHUNK, CAPACITY, 0),  # the token after a chunk is alike too, or a drafter would be told another
        (PREFILL_CHUNK + 1, CAPACITY, 1),
        (CAPACITY, CAPACITY, 1),  # the last token is left to the first cycle, and its chunk with it
        (CAPACITY, PREFILL_CHUNK, 0),
        (CAPACITY, PREFILL_CHUNK + 1, 1),
    ],
)
def test_chunks_are_shared_up_to_the_first_difference_and_the_shortest_prompt(alike, shortest, chunks):
    prompts = random_tokens(3, CAPACITY)
    prompts[:, :alike] = prompts[0, :alike]
    prompts[1:, alike : alike + 1] = 0
    assert count_shared_chunks(prompts, np.array([CAPACITY, shortest, CAPACITY])) == chunks


@every_plan
def test_prefill_and_a_draft_pass_score_like_the_whole_sequence(pair, plan):
    """Rows of every length: one token, a chunk and its neighbours, and two whole chunks but for the draft."""
    lengths = np.array([1, 2, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, CAPACITY - 4])
    tokens = random_tokens(len(lengths), CAPACITY)
    logits, hidden = kj.score(pair.target, tokens)

    @jax.jit
    def run(model, prompts, lengths, last, draft):
        cache = prefilled(model, prompts, lengths, CAPACITY, plan=plan)
        scores = DraftScorer().score(model, cache, last, draft, jnp.full_like(last, draft.shape[1]))
        return cache.length, scores.logits, scores.features.hidden, scores.cache

    # What stands after a prompt is padding, which may be anything.
    prompts = np.where(np.arange(CAPACITY) < lengths[:, None], tokens, random_tokens(*tokens.shape, seed=1))
    rows = np.arange(len(lengths))[:, None]
    ahead = lengths[:, None] + np.arange(3)
    consumed, scores, states, cache = run(
        pair.target, prompts, lengths, tokens[rows[:, 0], lengths - 1], tokens[rows, ahead]
    )
    np.testing.assert_array_equal(consumed, lengths - 1)
    np.testing.assert_array_equal(cache.length, lengths + 3)
    places = lengths[:, None] - 1 + np.arange(4)
    np.testing.assert_allclose(scores, logits[rows, places], atol=1e-4)
    np.testing.assert_allclose(states, hidden[rows, places], atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2], "int32 .B, T., got int64 .2."),
        ([[1.0]], "got float64"),
        ([[1, 999]], "outside the vocabulary of 257"),
        ([[-1, 9]], "outside the vocabulary of 257"),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(pair, tokens, message):
    with pytest.raises(InputError, match=message):
        kj.score(pair.target, tokens)


def test_a_pair_is_no_model(pair):
    with pytest.raises(InputError, match=r"such as pair.target, got ModelPair"):
        kj.score(pair, [[1]])

"""The draft's rollout, and the state its cache is left in."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_pairs import DRAFT_LENGTH, PROMPTS, forced, greedy_by_hand

import kljudge_jax as kj
from kljudge_jax.decoding.sampling import Sampling, process_logits
from kljudge_jax.decoding.score import prefill
from kljudge_jax.models.cache import KVCache

KEYS = jax.random.split(jax.random.key(8), len(PROMPTS))


@jax.jit
def begin(model):
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    padded = np.stack([np.pad(prompt, (0, 16 - len(prompt))) for prompt in PROMPTS])
    return prefill(model, KVCache.create(model.config, len(PROMPTS), 64), jnp.asarray(padded), jnp.asarray(lengths))


@jax.jit(static_argnames="with_hidden")
def propose(model, cache, recent, consumed, sampling, with_hidden=False):
    return kj.ModelDraft().propose(model, cache, recent, consumed, KEYS, sampling, DRAFT_LENGTH, with_hidden)


def ends_of(sequences):
    """The last two tokens of each, and how many stand before the last; before a single one stands anything."""
    recent = np.array([(row[-2] if len(row) > 1 else 77, row[-1]) for row in sequences], np.int32)
    return recent, np.array([len(row) - 1 for row in sequences], np.int32)


def test_a_greedy_draft_is_the_models_own_answer(pair):
    draft, _ = propose(pair.draft, begin(pair.draft), *ends_of(PROMPTS), Sampling.create())
    assert draft.tokens.shape == (4, DRAFT_LENGTH) and draft.tokens.dtype == jnp.int32
    for prompt, tokens, logits in zip(PROMPTS, draft.tokens, draft.logits, strict=True):
        assert tokens.tolist() == greedy_by_hand(pair.draft, prompt, DRAFT_LENGTH)
        expected, _ = forced(pair.draft, [*prompt, *tokens])
        np.testing.assert_allclose(logits, expected[len(prompt) - 1 : -1], atol=1e-4)
    assert draft.raw_logits is draft.logits or np.array_equal(draft.raw_logits, draft.logits)
    assert draft.hidden is None


def test_drafts_go_on_after_any_number_of_accepted_tokens(pair):
    """All of them included, whose last one the cache has not seen: the next first step takes two tokens."""
    sequences = [list(prompt) for prompt in PROMPTS]
    cache = begin(pair.draft)
    for round in range(4):
        draft, cache = propose(pair.draft, cache, *ends_of(sequences), Sampling.create())
        for row, sequence in enumerate(sequences):
            tokens = draft.tokens[row].tolist()
            assert tokens == greedy_by_hand(pair.draft, sequence, DRAFT_LENGTH)
            accepted = (row + 2 * round) % (DRAFT_LENGTH + 1)
            correction = (tokens[accepted] + 1) % 99 if accepted < DRAFT_LENGTH else 5 * row + round
            sequence += [*tokens[:accepted], correction]


def test_sampled_drafts_come_with_the_logits_they_were_drawn_from_and_their_states(pair):
    sampling = Sampling.create(0.9, top_k=7, top_p=0.95)
    draft, cache = propose(pair.draft, begin(pair.draft), *ends_of(PROMPTS), sampling, with_hidden=True)
    chosen = np.take_along_axis(np.asarray(draft.logits), np.asarray(draft.tokens)[..., None], axis=-1)
    assert np.isfinite(chosen).all()
    np.testing.assert_allclose(draft.logits, process_logits(draft.raw_logits, sampling), rtol=1e-6)
    np.testing.assert_array_equal(cache.length, [len(prompt) + DRAFT_LENGTH for prompt in PROMPTS])
    for row, prompt in enumerate(PROMPTS):
        logits, hidden = forced(pair.draft, [*prompt, *draft.tokens[row].tolist()])
        np.testing.assert_allclose(draft.raw_logits[row], logits[len(prompt) - 1 : -1], atol=1e-4)
        # State i has consumed draft token i; the one that predicted it is not among them.
        np.testing.assert_allclose(draft.hidden[row], hidden[len(prompt) :], atol=1e-4)


def test_a_draft_of_one_token_has_one_state(pair):
    def one(model, cache):
        return kj.ModelDraft().propose(model, cache, *ends_of(PROMPTS), KEYS, Sampling.create(), 1, True)[0]

    draft = jax.eval_shape(one, pair.draft, begin(pair.draft))
    assert draft.tokens.shape == (4, 1)
    assert draft.hidden.shape == (4, 1, pair.draft.config.hidden_size)

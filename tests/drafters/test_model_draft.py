"""The draft's rollout, and the state its cache is left in."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_pairs import DRAFT_LENGTH, PROMPTS, forced, greedy_by_hand, prefilled

import kljudge_jax as kj
from kljudge_jax.core.protocols import Context, Models, Request
from kljudge_jax.core.sampling import Sampling, process_logits

FIXED = Request(DRAFT_LENGTH)
KEYS = jax.random.split(jax.random.key(8), len(PROMPTS))


@jax.jit
def begin(model):
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    padded = np.stack([np.pad(prompt, (0, 16 - len(prompt))) for prompt in PROMPTS])
    return prefilled(model, padded, lengths, 64)


@jax.jit(static_argnames="request")
def propose(model, cache, sequence, consumed, sampling, request=FIXED):
    context = Context(sequence, consumed, jnp.full_like(consumed, request.draft_length), KEYS, sampling)
    draft, _, cache = kj.ModelDraft().propose(Models(None, model), None, cache, context, request)
    return draft, cache


def ends_of(sequences):
    """Each sequence, followed by stale tokens, and how many tokens stand before the last one."""
    padded = [np.pad(row, (0, 64 - len(row)), constant_values=77) for row in sequences]
    return np.array(padded, np.int32), np.array([len(row) - 1 for row in sequences], np.int32)


def test_a_greedy_draft_is_the_models_own_answer(pair):
    draft, _ = propose(pair.draft, begin(pair.draft), *ends_of(PROMPTS), Sampling.create())
    assert draft.tokens.shape == (4, DRAFT_LENGTH) and draft.tokens.dtype == jnp.int32
    np.testing.assert_array_equal(draft.count, DRAFT_LENGTH)
    for prompt, tokens, logits in zip(PROMPTS, draft.tokens, draft.raw_logits, strict=True):
        assert tokens.tolist() == greedy_by_hand(pair.draft, prompt, DRAFT_LENGTH)
        expected, _ = forced(pair.draft, [*prompt, *tokens])
        np.testing.assert_allclose(logits, expected[len(prompt) - 1 : -1], atol=1e-4)
    processed, raw = draft.distributions(2, 257)
    assert processed is raw and raw.shape == (4, 2, 257)
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
    draft, cache = propose(
        pair.draft, begin(pair.draft), *ends_of(PROMPTS), sampling, Request(DRAFT_LENGTH, with_hidden=True)
    )
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
    ends = ends_of(PROMPTS)
    draft, _ = propose.eval_shape(pair.draft, begin(pair.draft), *ends, Sampling.create(), request=Request(1, True))
    assert draft.tokens.shape == (4, 1)
    assert draft.hidden.shape == (4, 1, pair.draft.config.hidden_size)

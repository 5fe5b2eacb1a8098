"""What the target sees of a draft, against scores of whole sequences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tiny_pairs import PROMPTS, forced, prefilled

from kljudge_jax.core.scorers import DraftScorer, ReflectionScorer

LENGTHS = jnp.asarray([len(prompt) for prompt in PROMPTS])
DRAFTS = jnp.asarray([[7, 8, 9], [4, 4, 4], [11, 2, 30], [6, 5, 200]])
COUNT = jnp.asarray([3, 0, 1, 2])


@jax.jit(static_argnames=("scorer", "width"))
def scored(model, scorer, width=3):
    padded = jnp.asarray([np.pad(prompt, (0, 16 - len(prompt))) for prompt in PROMPTS])
    cache = prefilled(model, padded, LENGTHS, 32)
    last = jnp.asarray([prompt[-1] for prompt in PROMPTS])
    return scorer.score(model, cache, last, DRAFTS[:, :width], jnp.minimum(COUNT, width))


def test_a_reflection_scores_the_draft_and_a_copy_after_the_prompt(pair):
    scorer = ReflectionScorer((21, 22))
    scores, plain = scored(pair.target, scorer), scored(pair.target, DraftScorer())
    assert plain.reflected is None
    chex.assert_shape(
        [scores.logits, scores.reflected, plain.logits], (len(PROMPTS), DRAFTS.shape[1] + 1, pair.target.vocab_size)
    )
    for row, (prompt, drafted, count) in enumerate(zip(PROMPTS, DRAFTS.tolist(), COUNT.tolist(), strict=True)):
        real = slice(None, count + 1)
        np.testing.assert_allclose(scores.logits[row, real], plain.logits[row, real], atol=1e-4)
        np.testing.assert_allclose(scores.features.hidden[row, real], plain.features.hidden[row, real], atol=1e-4)
        if count == 0:  # nothing to reflect on
            np.testing.assert_array_equal(scores.reflected[row], scores.logits[row])
            continue
        real_draft = drafted[:count]
        logits, _ = forced(pair.target, [*prompt, *real_draft, 21, 22, *real_draft])
        copy = len(prompt) + count + 2
        np.testing.assert_allclose(scores.reflected[row, real], logits[copy - 1 : copy + count], atol=1e-4)
        # The next cycle goes on from what was accepted: the first view's slots hold the draft.
        for ours, theirs in zip(scores.cache.keys, plain.cache.keys, strict=True):
            written = slice(None, len(prompt) + count)
            np.testing.assert_allclose(ours[row, :, written], theirs[row, :, written], atol=1e-4)


def test_a_pass_without_a_draft_reflects_on_nothing(pair):
    scores = jax.eval_shape(lambda model: scored(model, ReflectionScorer((21,)), 0), pair.target)
    assert scores.reflected is None and scores.logits.shape[1] == 1


def test_slots_are_what_a_pass_writes():
    assert DraftScorer(3).slots(4) == 5
    assert ReflectionScorer((1, 2, 3)).slots(4) == 1 + 4 + 3 + 4

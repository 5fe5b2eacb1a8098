"""Features against float64 NumPy, and what each set-up reads."""

import jax
import numpy as np
import pytest
from transcription import entropy, kl, kl_on_support, softmax

from kljudge_jax.verification.features import (
    PRIMITIVES,
    SETUPS,
    feature_count,
    judge_features,
    logit_primitives,
    second_order_kl,
)

random = np.random.default_rng(0)
TARGET, DRAFT = random.normal(size=(20, 7)) * 2, random.normal(size=(20, 7)) * 2
TOKENS = random.integers(7, size=20)


def by_hand(target, draft, token):
    p, q = softmax(target), softmax(draft)
    first, second = sorted(p)[:-3:-1]
    return [kl(p, q), kl(q, p), entropy(p), entropy(q), first, first - second, np.log(p[token]), np.log(q[token])]


def test_primitives_agree_with_float64():
    found = jax.vmap(logit_primitives)(np.float32(TARGET), np.float32(DRAFT), TOKENS)
    expected = [by_hand(*position) for position in zip(TARGET, DRAFT, TOKENS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    assert found.shape[1] == len(PRIMITIVES)


def test_two_equal_tops_have_no_margin_and_a_draft_over_a_part_is_compared_there():
    tie = logit_primitives(np.float32([1, 1, 0]), np.float32([0, 0, 0]), 1)
    assert tie[PRIMITIVES.index("target_margin")] == 0
    holes = logit_primitives(np.float32([1, 1, 0]), np.float32([0, -np.inf, 0]), 0)
    p, q = softmax(np.array([1.0, 1, 0])), np.array([0.5, 0, 0.5])
    np.testing.assert_allclose(holes[PRIMITIVES.index("kl_target_draft")], kl_on_support(p, q)[0], rtol=1e-5)
    assert np.isfinite(holes[PRIMITIVES.index("draft_entropy")])


def test_second_order_is_the_double_sum_and_the_limit_of_kl():
    for target, draft in zip(TARGET, DRAFT, strict=True):
        q, gap = softmax(draft), target - draft
        double = sum(q[i] * q[j] * (gap[i] - gap[j]) ** 2 for i in range(7) for j in range(7)) / 4
        np.testing.assert_allclose(second_order_kl(np.float32(target), np.float32(draft)), double, rtol=1e-5)
        near = draft + 0.01 * gap
        np.testing.assert_allclose(kl(softmax(near), q), second_order_kl(near, draft), rtol=0.05)


@pytest.mark.parametrize("setup", SETUPS)
def test_every_setup_has_its_features_in_order(setup):
    states = {"target_hidden": np.full(3, 5, np.float16), "draft_hidden": np.full(2, 4, np.float16)}
    taken = [states[name] if name in SETUPS[setup] else None for name in states]
    hand = by_hand(TARGET[0], DRAFT[0], TOKENS[0])
    found = judge_features(setup, *taken, np.float32(hand))
    expected = {
        "DT": [5, 5, 5],
        "DD": [4, 4],
        "DD-DT": [4, 4, 5, 5, 5],
        "logits": hand,
        "pivot": [5, 5, 5, np.exp(hand[6]), hand[2]],
    }
    assert found.dtype == np.float32 and found.shape == (feature_count(setup, 3, 2),)
    np.testing.assert_allclose(found, expected[setup], rtol=2e-5, atol=1e-5)

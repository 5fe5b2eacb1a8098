import numpy as np
import pytest

from kljudge_jax.judges.labels import first_wrong_labels, likelihood_difference, pivot_score


def test_tokens_are_wrong_from_the_marked_character_on():
    offsets = [(0, 2), (2, 3), (3, 6)]
    assert first_wrong_labels(offsets, None).tolist() == [False, False, False]
    assert first_wrong_labels(offsets, 2).tolist() == [False, True, True]
    assert first_wrong_labels(offsets, 1).tolist() == [True, True, True]
    assert first_wrong_labels(offsets, 5).tolist() == [False, False, True]


def test_the_likelihood_counts_the_token_and_its_window():
    original, substituted = np.array([9.0, -1, -2, -3, -4]), np.array([5.0, -2, -4, -6, -80])
    assert likelihood_difference(original, substituted, 1, 2) == 6
    assert likelihood_difference(original, substituted, 3, 0) == 3
    assert likelihood_difference(original, substituted, 3, 20) == 79


def test_a_pivot_is_what_loses_the_answer():
    assert pivot_score([True, False, False, False]) == pytest.approx(0.75)
    assert pivot_score([True]) == 0

"""Typical acceptance: its ends and its edge."""

import numpy as np
import pytest
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, never_shorter, random_cases, rows
from transcription import softmax

from kljudge_jax.verification import TypicalAcceptance


def test_nothing_passes_floors_above_one_and_the_target_is_left():
    inputs = random_cases(1, False)
    rule = TypicalAcceptance(2.0, 1e9)
    assert not expected_lengths(rule, inputs).any()
    for case, correction in zip(rows(inputs), lengths_and_corrections(rule, inputs)[1], strict=True):
        np.testing.assert_allclose(correction[0], softmax(case[3][0]), atol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_the_floors_fall(greedy):
    assert never_shorter([TypicalAcceptance(floor, 10.0) for floor in (1.0, 0.3, 0.1, 0.0)], greedy)
    assert never_shorter([TypicalAcceptance(1.0, floor) for floor in (3.0, 0.5, 0.1, 0.0)], greedy)


def test_the_edge_of_the_floor_does_not_pass():
    level = np.zeros((2, 2), np.float32)  # p(d) is 1/2 to the last bit, and so is the hard floor
    inputs = as_inputs([[1]], [1], level[None, :1], level[None], level[None, :1], level[None], True)
    assert expected_lengths(TypicalAcceptance(0.5, 4.0), inputs)[0] == 0
    assert expected_lengths(TypicalAcceptance(0.49, 4.0), inputs)[0] == 1

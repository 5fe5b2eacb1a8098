"""The lenient odds: their ends and their order."""

import numpy as np
import pytest
from random_cases import KINDS, expected_lengths, never_shorter, random_cases

from kljudge_jax.verification import Lenience, Mentored, SpeculativeSampling

UNTIED = [kind for kind in KINDS if kind != "ties"]


@pytest.mark.parametrize("rule", [Lenience(1.0), Mentored(0.0)])
def test_the_strict_end(rule):
    for greedy in (True, False):
        inputs = random_cases(1, greedy, kinds=UNTIED)
        found, strict = (expected_lengths(r, inputs) for r in (rule, SpeculativeSampling()))
        np.testing.assert_allclose(found, strict, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_accepts_more_as_it_is_relaxed(greedy):
    assert never_shorter([Lenience(factor) for factor in (1.0, 0.8, 0.3, 0.01)], greedy)
    assert never_shorter([Mentored(alpha) for alpha in (0.0, 0.2, 0.7, 0.99)], greedy)

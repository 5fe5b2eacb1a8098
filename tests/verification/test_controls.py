"""The controls accept what they say, and their ends are the strict rule and the whole draft."""

import chex
import numpy as np
import pytest
from random_cases import never_shorter, random_cases, verdicts
from transcription import check, excess, target

from kljudge_jax.verification import AcceptAll, RandomAcceptance, SpeculativeSampling, SyntheticAcceptance


@pytest.mark.parametrize(
    "rule, accept, residual",
    [
        (AcceptAll(), lambda position: (1.0, 1.0), excess),
        (RandomAcceptance(0.3), lambda position: (position.strict + 0.3 * (1 - position.strict), 1.0), excess),
        (SyntheticAcceptance(0.7), lambda position: (0.7, 1.0), target),
    ],
)
def test_agrees_with_a_float64_transcription(rule, accept, residual):
    check(rule, accept, residual)


@pytest.mark.parametrize("greedy", [True, False])
def test_the_ends_of_the_range(greedy):
    inputs = random_cases(1, greedy)
    everything = verdicts(AcceptAll(), inputs)
    np.testing.assert_array_equal(everything.num_accepted, inputs.draft_count)
    chex.assert_trees_all_equal(verdicts(RandomAcceptance(1.0), inputs), everything)
    chex.assert_trees_all_equal(verdicts(SyntheticAcceptance(1.0), inputs), everything)
    chex.assert_trees_all_equal(verdicts(RandomAcceptance(0.0), inputs), verdicts(SpeculativeSampling(), inputs))
    assert not np.asarray(verdicts(SyntheticAcceptance(0.0), inputs).num_accepted).any()
    assert never_shorter([RandomAcceptance(rate) for rate in (0.0, 0.2, 0.9, 1.0)], greedy)
    assert never_shorter([SyntheticAcceptance(rate) for rate in (0.0, 0.2, 0.9, 1.0)], greedy)

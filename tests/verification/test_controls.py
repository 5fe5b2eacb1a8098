"""The ends of the controls are the strict rule and the whole draft."""

import chex
import numpy as np
import pytest
from random_cases import never_shorter, random_cases, verdicts

from kljudge_jax.verification import AcceptAll, RandomAcceptance, SpeculativeSampling, SyntheticAcceptance


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

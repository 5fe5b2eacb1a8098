"""What each target pass of assisted generation committed, from what it consumed and what the answer is."""

import pytest

from kljudge_jax.evaluation.baselines.passes import cycles_of
from kljudge_jax.generation.stats import Cycle

PROMPT = [7, 8]


def test_drafts_count_as_far_as_they_are_the_answer():
    inputs = [[7, 8, 1, 2, 9], [3, 4, 5], [6, 9]]
    assert cycles_of(inputs, 2, [1, 2, 3, 4, 5, 6, 0]) == [Cycle(3, 2, 3), Cycle(2, 2, 3), Cycle(1, 0, 1)]


def test_an_accepted_end_has_no_token_of_the_target_after_it():
    assert cycles_of([[7, 8, 1, 0]], 2, [1, 0]) == [Cycle(2, 2, 2)]


def test_passes_without_a_draft_commit_one_token():
    assert cycles_of([[7, 8], [1], [2]], 2, [1, 2, 3]) == [Cycle(0, 0, 1)] * 3


@pytest.mark.parametrize("inputs", [[[7, 8, 1]], [[7, 8, 9, 9], [1, 9]], [[7, 8, 1, 2], [3]]])
def test_passes_that_cannot_have_written_the_answer_are_an_error(inputs):
    with pytest.raises(RuntimeError, match="target passes explain"):
        cycles_of(inputs, 2, [1, 2, 3])

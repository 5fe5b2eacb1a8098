"""Mining on the pair that comes with the package: the literal search's labels, on real mismatches."""

from pathlib import Path

import numpy as np
import pytest
from literal_search import search

import kljudge_jax as kj
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.reference import make_reference
from kljudge_jax.judges.semi_greedy import Options

NEW = 128


class Shortest:
    """The arithmetic problem whose solution is the shortest of some, since the literal search is slow."""

    name = "arithmetic"

    def __init__(self):
        self.inner = kj.load_task("arithmetic")
        self.check = self.inner.check

    def problems(self, split, n, seed):
        return sorted(self.inner.problems(split, 40, seed), key=lambda problem: len(problem.solution))[:n]


@pytest.mark.real
def test_labels_are_those_of_the_literal_search(tmp_path):
    if not (Path(kj.__file__).parents[1] / "checkpoints" / "target").is_dir():
        pytest.skip("this checkout has no embedded pair")
    pair = kj.ModelPair.embedded()
    task = Shortest()
    mined = mine(pair, task, tmp_path, split="validation", n=1, options=Options(NEW, batch=1, gap_tokens=0))
    row = 0
    for i, problem in enumerate(task.problems("validation", 1, 7)):

        def same_answer(reference, text, problem=problem):
            return make_reference(task, problem, reference, "target").same(text)

        expected = search(pair, pair.tokenizer(problem.prompt)["input_ids"], same_answer, NEW, width=192)
        for position, important, target_token, draft_token, target_state, *_ in expected:
            found = [mined[name][row] for name in ("question", "position", "important", "target_token", "draft_token")]
            assert found == [i, position, important, target_token, draft_token]
            np.testing.assert_allclose(mined["target_hidden"][row], target_state, atol=1e-3)
            row += 1
    assert row == len(mined) > 0

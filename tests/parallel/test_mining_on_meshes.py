"""Mining on a mesh finds what it finds on one device."""

import numpy as np
import pytest
from spread_pairs import spread
from tiny_pairs import text_pair
from toy_task import LetterParity

from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.semi_greedy import Options


@pytest.mark.slow
def test_mining_on_a_mesh_labels_the_same_mismatches(tmp_path):
    pair, found = text_pair(noise=0.25), []
    for name, models in (("alone", pair), ("mesh", spread(pair, "data=2,tensor=2"))):
        data = mine(models, LetterParity(), tmp_path / name, n=6, options=Options(8, batch=4, gap_tokens=5))
        found.append([data[column].tolist() for column in ("question", "position", "important", "draft_token")])
    assert found[0] == found[1]
    assert len(found[0][0]) > 3 and len(np.unique(found[0][2])) == 2

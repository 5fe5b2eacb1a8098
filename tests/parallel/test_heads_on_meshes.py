"""A head on a mesh drafts what it drafts on one device, and reports say where it lies."""

import numpy as np
import pytest
from tiny_heads import headed_pair, on_mesh
from tiny_pairs import PROMPTS, tokens_of

import kljudge_jax as kj
from kljudge_jax.evaluation.sweep.claim import _placed
from kljudge_jax.generation.arguments import drafter_for
from kljudge_jax.generation.costs import draft_cost

ASKED = {"verifier": "exact", "draft_length": 4, "max_new_tokens": 24}
# A vocabulary and ids that two and four devices divide.
IDS = np.arange(0, 256, 2)


@pytest.fixture(scope="module")
def alone():
    return headed_pair(IDS)


@pytest.mark.parametrize(
    ("mesh", "axes"),
    [("data=2,tensor=2", "target"), pytest.param("data=2,tensor=2", "replicated", marks=pytest.mark.slow)],
)
def test_a_draft_on_a_mesh_is_the_same(alone, mesh, axes):
    spread = on_mesh(alone, mesh, axes)
    ours, theirs = (kj.generate(pair, PROMPTS, **ASKED) for pair in (spread, alone))
    assert tokens_of(ours) == tokens_of(theirs)
    assert ours.stats.accepted == theirs.stats.accepted > 0
    assert _placed(spread)["draft"]["vocab"] == ([] if axes == "replicated" else _placed(spread)["target"]["vocab"])
    costs = [draft_cost(pair, drafter_for(pair, kj.ModelDraft())) for pair in (spread, alone)]
    assert costs[0] == costs[1]


def test_a_drawn_draft_on_a_split_vocabulary(alone):
    """Truncated over a vocabulary that is not sorted: its draws are others, and each is one that it knows."""
    out = kj.generate(on_mesh(alone, "data=2,tensor=2"), PROMPTS, **ASKED, temperature=0.8, top_p=0.9, top_k=20)
    assert out.stats.tokens == 4 * 24 and out.stats.drafted > 0 and not out.stats.failed

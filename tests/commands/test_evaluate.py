"""What `kljudge evaluate` takes for the same work."""

from types import SimpleNamespace

import pytest

from kljudge_jax import cli
from kljudge_jax.commands.evaluate import _asked

WORDS = ["evaluate", "--target", "big", "--draft", "small", "--harness-tasks", "sums", "--mesh", "data=2,tensor=2"]


@pytest.mark.parametrize("other", [["--axes", "vocab=none"], ["--draft-axes", "replicated"], ["--mesh", "data=4"]])
def test_models_that_lie_otherwise_are_other_work(other):
    pair = SimpleNamespace(target_name="big", draft_name="small", precision="float32")
    one, again, placed = (_asked(cli._parser().parse_args(words), pair) for words in (WORDS, WORDS, WORDS + other))
    assert one == again != placed

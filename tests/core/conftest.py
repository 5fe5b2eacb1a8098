import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_promoted():
    """What this folder tests has shapes and dtypes of its own: nothing in it is promoted without a word."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield

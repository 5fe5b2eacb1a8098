import pytest
import tiny_pairs


@pytest.fixture(scope="session")
def pair():
    """A pair without a tokenizer."""
    return tiny_pairs.tiny_pair()


@pytest.fixture(scope="session")
def text_pair():
    """A pair over bytes."""
    return tiny_pairs.text_pair()


@pytest.fixture(scope="session")
def chunk_pair():
    """A pair whose tokens have several characters each."""
    return tiny_pairs.tiny_pair(seed=29, noise=0.1, tokenizer=tiny_pairs.chunk_tokenizer())

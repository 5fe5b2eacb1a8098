import pytest
from tiny_pairs import byte_tokenizer, tiny_pair


@pytest.fixture(scope="session")
def pair():
    """A pair without a tokenizer, of 23 tokens."""
    return tiny_pair()


@pytest.fixture(scope="session")
def text_pair():
    """A pair over bytes."""
    return tiny_pair(seed=2, noise=0.1, vocab_size=257, eos=(256,), tokenizer=byte_tokenizer())

"""One tokenizer and one tiny shape for all training tests."""

import pytest

from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.tasks.conversion import Conversion
from kljudge_jax.training import batches
from kljudge_jax.training.bpe import train_tokenizer


@pytest.fixture(scope="package")
def one_width():
    """Every batch as wide as the longest problem, so that a training step compiles once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_WIDTH_STEP", 256)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    problems = [task.problem("train", 0, i) for task in (Arithmetic(), Conversion()) for i in range(300)]
    return train_tokenizer((p.prompt + p.solution for p in problems), vocab_size=384)


@pytest.fixture(scope="session")
def config():
    return TransformerConfig(
        family="llama",
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        tied_head=True,
    )

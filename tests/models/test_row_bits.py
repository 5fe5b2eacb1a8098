"""A token's numbers are the same to the bit alone and among others, through the whole model, on a CPU's one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import Transformer

pytestmark = pytest.mark.skipif(
    not library().ready or jax.default_backend() != "cpu", reason=f"asks native products: {library().reason}"
)

PROMPT = DRAFT = 9  # tokens: one program for both
SIZES = {"hidden_size": 200, "intermediate_size": 328, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2}
FAMILIES = {
    "biased": {"qkv_bias": True},
    "normed": {"qk_norm": True, "activation": "gelu"},
    "scaled and capped": {
        "post_norms": True,
        "embedding_scale": 200**0.5,
        "attention_softcap": 50.0,
        "final_softcap": 30.0,
        "activation": "gelu_tanh",
        "windows": (0, 4),
    },
}
CASES = [
    ("biased", "bfloat16", 4),
    ("normed", "bfloat16", 8),
    ("scaled and capped", "float32", None),
    ("scaled and capped", "bfloat16", None),
    pytest.param("biased", "bfloat16", None, marks=pytest.mark.slow),
    pytest.param("normed", "float32", None, marks=pytest.mark.slow),
]


@jax.jit
def consume(model, tokens, cache):
    features, cache = model(tokens, cache, layers=(0, 2))
    return (model.logits(features.hidden), features.hidden, *features.layers), cache


@pytest.mark.parametrize("family, dtype, bits", CASES)
def test_a_row_is_the_same_to_the_bit_alone_and_among_others(family, dtype, bits):
    config = TransformerConfig("tiny", 301, head_dim=24, max_position=4096, **SIZES, **FAMILIES[family])
    model = Transformer(config, jax.random.key(1), Storage(jnp.dtype(dtype), bits=bits))
    most = 25  # whose passes of 9 tokens have more rows than products of floats had to be native
    tokens = np.random.default_rng(0).integers(0, 301, (most, PROMPT + DRAFT)).astype(np.int32)

    def states(rows, *lengths):
        """Of some rows' tokens, consumed in passes of so many each, and what the cache holds then."""
        cache, found, at = model.init_cache(rows, PROMPT + DRAFT), [], 0
        for length in lengths:
            some, cache = consume(model, tokens[:rows, at : at + length], cache)
            found.append([np.asarray(x) for x in some])
            at += length
        return [np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)], jax.tree.map(np.asarray, cache)

    want, filled = states(most, PROMPT, DRAFT)
    assert np.std(want[0].astype(np.float32)) > 0.1, "the model says nothing: the test could not fail"
    assert want[1].dtype == model.dtype
    for rows in (1, 8):
        for lengths in [(PROMPT, DRAFT), (PROMPT, *[1] * DRAFT)]:
            got, cache = states(rows, *lengths)
            for ours, whole in zip([*got, *jax.tree.leaves(cache)], [*want, *jax.tree.leaves(filled)], strict=True):
                np.testing.assert_array_equal(ours, whole[:rows], f"{rows} rows in passes of {lengths}")

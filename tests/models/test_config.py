"""Rope frequencies against Transformers', and the checks of a configuration."""

import numpy as np
import pytest

from kljudge_jax.models.config import Rope, TransformerConfig

TYPES = {
    "linear": dict(factor=4.0),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256),
    "yarn": dict(factor=4.0, original_max_position_embeddings=256),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("head_dim", [16, 64])
def test_frequencies_are_those_of_transformers(name, head_dim):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from kljudge_jax.models.families import config_from_hf

    theirs = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": name, "rope_theta": 5000.0, **TYPES[name]},
    )
    want, factor = ROPE_INIT_FUNCTIONS[name](theirs, "cpu")
    rope = config_from_hf(theirs.to_dict()).rope
    np.testing.assert_allclose(rope.frequencies(head_dim), want.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(factor)
    assert not np.allclose(rope.frequencies(head_dim), Rope(5000.0).frequencies(head_dim))


def test_divisors_divide():
    plain = Rope(100.0).frequencies(4)
    np.testing.assert_allclose(Rope(100.0, frequency_divisors=(1.0, 8.0)).frequencies(4), plain / [1, 8])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_kv_heads=3), "not a multiple"),
        (dict(head_dim=5), "even head dimension"),
        (dict(activation="relu"), "unknown activation"),
        (dict(windows=(1,)), "1 windows for 2 layers"),
    ],
)
def test_contradictions_are_refused(change, message):
    shape = dict(
        family="llama",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
    )
    assert TransformerConfig(**shape).window(1) == 0
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**shape | change)


def test_local_rope_is_for_layers_with_a_window():
    local = Rope(100.0)
    config = TransformerConfig("gemma3_text", 8, 8, 8, 2, 1, 1, 8, windows=(5, 0), local_rope=local)
    assert config.layer_rope(0) is local and config.layer_rope(1) == config.rope

import numpy as np
import pytest

from kljudge_jax.models.names import our_layout, our_name


@pytest.mark.parametrize(
    "theirs, family, ours",
    [
        ("model.embed_tokens.weight", "llama", "embedding.table"),
        ("embed_tokens.weight", "llama", "embedding.table"),  # a base model without its head
        ("model.language_model.embed_tokens.weight", "gemma3_text", "embedding.table"),
        ("language_model.model.norm.weight", "gemma3_text", "final_norm.scale"),
        ("lm_head.weight", "llama", "head.weight"),
        ("model.layers.12.self_attn.q_proj.weight", "qwen2", "layers.12.attention.query.weight"),
        ("model.layers.12.self_attn.q_proj.bias", "qwen2", "layers.12.attention.query.bias"),
        ("model.layers.0.self_attn.o_proj.weight", "llama", "layers.0.attention.out.weight"),
        ("model.layers.0.self_attn.k_norm.weight", "qwen3", "layers.0.attention.key_norm.scale"),
        ("model.layers.0.post_attention_layernorm.weight", "llama", "layers.0.mlp_norm.scale"),
        ("model.layers.0.post_attention_layernorm.weight", "gemma2", "layers.0.post_attention_norm.scale"),
        ("model.layers.0.pre_feedforward_layernorm.weight", "gemma2", "layers.0.mlp_norm.scale"),
        ("model.layers.0.post_feedforward_layernorm.weight", "gemma3_text", "layers.0.post_mlp_norm.scale"),
    ],
)
def test_known_tensors(theirs, family, ours):
    assert our_name(theirs, family, tied_head=False) == ours


@pytest.mark.parametrize(
    "theirs",
    [
        "model.layers.0.pre_feedforward_layernorm.weight",  # llama has none
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.input_layernorm.bias",
        "score.weight",
    ],
)
def test_unknown_tensors_keep_their_name(theirs):
    assert our_name(theirs, "llama", tied_head=False) == theirs


def test_what_is_no_parameter_is_left_out():
    assert our_name("model.layers.0.self_attn.rotary_emb.inv_freq", "llama", False) is None
    assert our_name("vision_tower.encoder.layers.0.mlp.fc1.weight", "gemma3_text", True) is None
    assert our_name("model.multi_modal_projector.mm_input_projection_weight", "gemma3_text", True) is None
    assert our_name("lm_head.weight", "llama", tied_head=True) is None


def test_weights_stay_as_they_are_and_gemma_norms_are_the_factor():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(our_layout("head.weight", weight, "llama"), weight)
    norm = np.array([-0.5, 0.25], np.float16)
    np.testing.assert_array_equal(our_layout("final_norm.scale", norm, "gemma2"), np.array([0.5, 1.25], np.float32))
    assert our_layout("final_norm.scale", norm, "llama") is norm

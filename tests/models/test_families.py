"""config.json of every family, as Transformers 4 and 5 write it, and what is refused."""

import math

import pytest
from tiny_hf import FAMILIES

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope
from kljudge_jax.models.families import config_from_hf, supported_families

LLAMA = dict(
    model_type="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)

# Files as the hub holds them, written by Transformers 4, less what says nothing about the shape.
HUB = {
    "Llama-3.2-1B-Instruct": dict(
        attention_bias=False,
        eos_token_id=[128001, 128008, 128009],
        head_dim=64,
        hidden_act="silu",
        hidden_size=2048,
        intermediate_size=8192,
        max_position_embeddings=131072,
        mlp_bias=False,
        model_type="llama",
        num_attention_heads=32,
        num_hidden_layers=16,
        num_key_value_heads=8,
        pretraining_tp=1,
        rms_norm_eps=1e-05,
        rope_scaling=dict(
            factor=32.0,
            high_freq_factor=4.0,
            low_freq_factor=1.0,
            original_max_position_embeddings=8192,
            rope_type="llama3",
        ),
        rope_theta=500000.0,
        tie_word_embeddings=True,
        vocab_size=128256,
    ),
    "Mistral-7B-v0.1": dict(
        hidden_act="silu",
        hidden_size=4096,
        intermediate_size=14336,
        max_position_embeddings=32768,
        model_type="mistral",
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_theta=10000.0,
        sliding_window=4096,
        tie_word_embeddings=False,
        vocab_size=32000,
    ),
    "Mistral-7B-v0.3": dict(
        hidden_act="silu",
        head_dim=None,
        hidden_size=4096,
        intermediate_size=14336,
        max_position_embeddings=32768,
        model_type="mistral",
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_theta=1000000.0,
        sliding_window=None,
        vocab_size=32768,
    ),
    "Qwen2.5-0.5B-Instruct": dict(
        hidden_act="silu",
        hidden_size=896,
        intermediate_size=4864,
        max_position_embeddings=32768,
        max_window_layers=21,
        model_type="qwen2",
        num_attention_heads=14,
        num_hidden_layers=24,
        num_key_value_heads=2,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        sliding_window=32768,
        tie_word_embeddings=True,
        use_sliding_window=False,
        vocab_size=151936,
    ),
    "Qwen3-0.6B": dict(
        attention_bias=False,
        head_dim=128,
        hidden_act="silu",
        hidden_size=1024,
        intermediate_size=3072,
        max_position_embeddings=40960,
        max_window_layers=28,
        model_type="qwen3",
        num_attention_heads=16,
        num_hidden_layers=28,
        num_key_value_heads=8,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
        vocab_size=151936,
    ),
    "gemma-2-2b-it": dict(
        attn_logit_softcapping=50.0,
        cache_implementation="hybrid",
        final_logit_softcapping=30.0,
        head_dim=256,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=2304,
        intermediate_size=9216,
        max_position_embeddings=8192,
        model_type="gemma2",
        num_attention_heads=8,
        num_hidden_layers=26,
        num_key_value_heads=4,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_theta=10000.0,
        sliding_window=4096,
        vocab_size=256000,
    ),
    "gemma-3-1b-it": dict(
        attn_logit_softcapping=None,
        cache_implementation="hybrid",
        final_logit_softcapping=None,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=1152,
        intermediate_size=6912,
        max_position_embeddings=32768,
        model_type="gemma3_text",
        num_attention_heads=4,
        num_hidden_layers=26,
        num_key_value_heads=1,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_local_base_freq=10000,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=512,
        sliding_window_pattern=6,
        vocab_size=262144,
    ),
}

GEMMA_3_4B = dict(
    model_type="gemma3",
    eos_token_id=[1, 106],
    text_config=dict(
        hidden_size=2560,
        intermediate_size=10240,
        model_type="gemma3_text",
        num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window=1024,
    ),
    vision_config=dict(hidden_size=1152, model_type="siglip_vision_model"),
)


def rewritten(config):
    """The same file as Transformers 5 writes it."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**config).to_dict()


@pytest.mark.parametrize("name", HUB)
def test_old_and_new_files_read_the_same(name):
    assert "rope_parameters" in rewritten(HUB[name])
    assert config_from_hf(HUB[name]) == config_from_hf(rewritten(HUB[name]))


def test_gemma3_with_vision_reads_its_text_part_over_the_class_defaults():
    config = config_from_hf(GEMMA_3_4B)
    assert config == config_from_hf(rewritten(GEMMA_3_4B)["text_config"])
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert config.rope == Rope(1e6, "linear", 8.0) and config.local_rope == Rope(1e4)
    assert config.windows[:7] == (1024,) * 5 + (0, 1024) and config.tied_head


@pytest.mark.parametrize("family", [f for f in supported_families() if f != "gemma3"])
def test_a_value_left_out_has_the_default_of_transformers(family):
    shape = {k: v for k, v in LLAMA.items() if k not in ("model_type", "num_key_value_heads")} | {
        "num_attention_heads": 64 if family.startswith("qwen") else 8,
        "hidden_size": 512,
        "max_position_embeddings": 8192,
    }
    assert config_from_hf({"model_type": family, **shape}) == config_from_hf(rewritten({"model_type": family, **shape}))


def test_llama3():
    config = config_from_hf(HUB["Llama-3.2-1B-Instruct"])
    assert config.rope == Rope(500000.0, "llama3", 32.0, 1.0, 4.0, original_max_position=8192)
    assert config.tied_head and config.windows == () and config.norm_eps == 1e-5
    assert not config.qkv_bias


def test_mistral_windows():
    assert config_from_hf(HUB["Mistral-7B-v0.1"]).windows == (4096,) * 32
    assert config_from_hf(HUB["Mistral-7B-v0.3"]).windows == ()
    assert config_from_hf(HUB["Mistral-7B-v0.3"]).head_dim == 128


def test_qwen2_windows_start_at_max_window_layers():
    assert config_from_hf(HUB["Qwen2.5-0.5B-Instruct"]).windows == ()
    config = config_from_hf(HUB["Qwen2.5-0.5B-Instruct"] | dict(use_sliding_window=True, sliding_window=7))
    assert config.windows == (0,) * 21 + (7,) * 3
    assert config.qkv_bias and not config.out_bias


def test_qwen3_norms_heads():
    config = config_from_hf(HUB["Qwen3-0.6B"])
    assert config.qk_norm and config.head_dim == 128 and not config.qkv_bias


def test_gemma2():
    config = config_from_hf(HUB["gemma-2-2b-it"])
    assert config.windows[:3] == (4096, 0, 4096)
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert config.query_scale == 256**-0.5 and config.embedding_scale == math.sqrt(2304)
    assert config.activation == "gelu_tanh" and config.post_norms and config.tied_head


def test_head_dim_follows_from_the_hidden_size():
    assert config_from_hf(LLAMA).head_dim == 8


def test_early_transformers_4_called_it_type():
    config = config_from_hf(LLAMA | dict(rope_scaling=dict(type="linear", factor=2.0)))
    assert config.rope == Rope(10000.0, "linear", 2.0)


@pytest.mark.parametrize(
    "family",
    [
        "mamba",
        "mamba2",
        "falcon_mamba",
        "jamba",
        "bamba",
        "zamba",
        "zamba2",
        "rwkv",
        "rwkv7",
        "recurrent_gemma",
        "lfm2",
        "qwen3_next",
        "qwen3_5_moe",
    ],
)
def test_a_cache_that_cannot_roll_back_is_refused(family):
    with pytest.raises(InputError, match=f"^{family} models .*rolled back.*llama"):
        config_from_hf(LLAMA | dict(model_type=family))


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma", "bert", "qwen3_moe", None])
def test_an_unknown_family_is_refused_with_those_that_work(family):
    with pytest.raises(InputError) as error:
        config_from_hf(LLAMA | dict(model_type=family))
    assert repr(family) in str(error.value)
    assert all(name in str(error.value) for name in supported_families())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)), "'dynamic'"),
        (dict(rope_scaling=dict(type="longrope", long_factor=[1.0])), "'longrope'"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "llama3 needs low_freq_factor"),
        (dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), "partial_rotary_factor 0.5"),
        (dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
        (dict(num_local_experts=8), "num_local_experts = 8"),
        (dict(quantization_config=dict(quant_method="bitsandbytes")), "bitsandbytes"),
        (dict(hidden_act="relu"), "'relu'"),
        (dict(hidden_size=None), "no hidden_size"),
        (dict(hidden_size="32"), "hidden_size is '32'"),
        (dict(rms_norm_eps="small"), "rms_norm_eps is 'small'"),
        (dict(tie_word_embeddings=1), "tie_word_embeddings is 1"),
        (dict(num_attention_heads=0), "at least 1"),
        (dict(num_key_value_heads=3), "contradicts itself: 4 query heads"),
        (dict(model_type="mistral", sliding_window=4, layer_types=["chunked_attention"] * 2), "'chunked_attention'"),
        (dict(model_type="qwen3", use_sliding_window=True, layer_types=["full_attention"]), "1 layer_types for 2"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    assert config_from_hf(LLAMA).num_layers == 2
    with pytest.raises(InputError, match=message):
        config_from_hf(LLAMA | change)


def test_every_tiny_family_is_covered():
    assert {family for family, _ in FAMILIES.values()} == set(supported_families()) - {"gemma3"}

"""What GGUF metadata means, and that no value of it makes anything but a configuration or an InputError."""

import numpy as np
import pytest
from tiny_gguf import write, write_llama, write_model
from tiny_hf import make_hf_model

from kljudge_jax.errors import InputError
from kljudge_jax.models.gguf import GGUFFile


def test_gemma3_local_rope_when_the_file_does_not_say(tmp_path):
    theirs = make_hf_model("gemma3", query_pre_attn_scalar=16)
    config = GGUFFile(write_model(tmp_path / "tiny.gguf", theirs)).config
    assert config.local_rope.theta == 10000.0 and config.local_rope.scaling == "none"
    assert config.rope.scaling == "linear" and config.rope.factor == 8.0


@pytest.mark.parametrize(
    ("architecture", "layers", "width"), [("gemma2", 46, 16), ("gemma3", 62, 16), ("gemma2", 2, 64)]
)
def test_the_27b_gemmas_scale_queries_by_the_width_per_head(architecture, layers, width, tmp_path):
    keys = {
        ".block_count": layers,
        ".context_length": 64,
        ".embedding_length": 32,
        ".feed_forward_length": 16,
        ".attention.head_count": 2,
        ".attention.key_length": 64,
        ".attention.value_length": 64,
        ".attention.layer_norm_rms_epsilon": 1e-6,
    }
    tensors = {f"blk.{i}.attn_norm.weight": np.ones(32, np.float32) for i in range(layers)}
    tensors["token_embd.weight"] = np.zeros((6, 32), np.float32)
    config = GGUFFile(write(tmp_path / "tiny.gguf", architecture, keys, tensors)).config
    assert config.query_scale == width**-0.5
    assert (config.attention_softcap, config.final_softcap) == ((50.0, 30.0) if architecture == "gemma2" else (0, 0))


def test_float32_metadata_reads_as_the_decimal_that_was_meant(tmp_path):
    assert GGUFFile(write_llama(tmp_path / "tiny.gguf")).config.norm_eps == 1e-5


def test_yarn(tmp_path):
    def read(**more):
        keys = {f".rope.scaling.{name}": value for name, value in dict(type="yarn", factor=4.0, **more).items()}
        return GGUFFile(write_llama(tmp_path / "tiny.gguf", keys=keys)).config.rope

    plain = read()
    assert plain.attention_factor == pytest.approx(1.13862943)  # 0.1 ln 4 + 1
    assert (plain.beta_fast, plain.beta_slow, plain.original_max_position) == (32.0, 1.0, 64)
    assert read(attn_factor=2.0).attention_factor == pytest.approx(2 * 1.13862943)
    assert read(yarn_attn_factor=1.5).attention_factor == 1.5
    other = read(yarn_beta_fast=16.0, yarn_beta_slow=2.0, original_context_length=32)
    assert (other.beta_fast, other.beta_slow, other.original_max_position) == (16.0, 2.0, 32)


def test_a_factor_without_a_type_is_linear(tmp_path):
    for key in (".rope.scaling.factor", ".rope.scale_linear"):
        rope = GGUFFile(write_llama(tmp_path / "tiny.gguf", keys={key: 4.0})).config.rope
        assert (rope.scaling, rope.factor) == ("linear", 4.0)


REFUSALS = {
    "mamba": ({}, "recurrent state cannot be rolled back"),
    "rwkv7": ({}, "recurrent state cannot be rolled back"),
    "falcon-h1": ({".ssm.inner_size": 64}, "recurrent state cannot be rolled back"),
    "lfm2": ({".shortconv.l_cache": 3}, "recurrent state cannot be rolled back"),
    "qwen3moe": ({}, r"mixture of experts \(qwen3moe\)"),
    "llama": ({".expert_count": 8}, r"mixture of experts \(llama\)"),
    "phi3": ({}, "architecture 'phi3', which is not supported: choose one of llama, qwen2"),
    "qwen2": ({"split.count": 3}, "one part of several"),
    "qwen3": ({}, "no tensor token_embd.weight"),
}


@pytest.mark.parametrize("architecture", REFUSALS)
def test_models_that_do_not_run_are_refused_by_name(architecture, tmp_path):
    keys, message = REFUSALS[architecture]
    path = write(tmp_path / "tiny.gguf", architecture, keys)
    with pytest.raises(InputError, match=message):
        GGUFFile(path)


BAD_KEYS = {
    "missing": ({".embedding_length": ()}, r"llama.embedding_length = None where a positive number"),
    "text": ({".embedding_length": "wide"}, r"llama.embedding_length = 'wide'"),
    "no heads": ({".attention.head_count": 0}, r"llama.attention.head_count = 0"),
    "layers of several sizes": ({".feed_forward_length": [16, 32]}, "the same in all layers"),
    "layers lost": ({".block_count": 3}, "announces 3 layers and holds 1"),
    "partial rope": ({".rope.dimension_count": 2}, r"rope.dimension_count = 2 where the head dimension, 4,"),
    "odd groups": ({".attention.head_count": 4, ".attention.head_count_kv": 3}, "contradicts itself"),
    "rope": ({".rope.scaling.type": "longrope"}, "rope.scaling.type = 'longrope' where none, linear or yarn"),
    "no number": ({".rope.freq_base": float("nan")}, "rope.freq_base = nan where a number"),
    "windows": (
        {".attention.sliding_window": 4, ".attention.sliding_window_pattern": [True, False]},
        "sliding_window_pattern",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_senseless_hyperparameters_are_refused_by_name(case, tmp_path):
    keys, message = BAD_KEYS[case]
    path = write_llama(tmp_path / "tiny.gguf", keys=keys)
    with pytest.raises(InputError, match=message):
        GGUFFile(path)


WRONG = (True, -1, 0, 1, 3.5, float("nan"), "x", [1, 2], [0.5], ["a"], [True, False])
KEYS = {
    ".attention.sliding_window": 4,
    ".rope.scaling.type": "yarn",
    ".rope.scaling.factor": 2.0,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab"],
    "tokenizer.ggml.token_type": [2, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, -3.0, -2.0, -1.0],
    "tokenizer.chat_template": "{{ messages }}",
}
MORE = (
    ".block_count .context_length .embedding_length .feed_forward_length .expert_count .attention.head_count "
    ".attention.head_count_kv .attention.key_length .attention.value_length .attention.layer_norm_rms_epsilon "
    ".attention.sliding_window_pattern .rope.freq_base .rope.dimension_count .rope.scale_linear "
    ".rope.scaling.original_context_length .rope.scaling.attn_factor .rope.scaling.yarn_beta_fast split.count "
    "general.alignment tokenizer.ggml.pre tokenizer.ggml.merges tokenizer.ggml.bos_token_id "
    "tokenizer.ggml.eos_token_id tokenizer.ggml.unknown_token_id tokenizer.ggml.padding_token_id "
    "tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token tokenizer.ggml.add_space_prefix"
)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_no_value_makes_anything_but_an_input_error(model, tmp_path):
    whole = KEYS | {"tokenizer.ggml.model": model, "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a b"]}
    assert GGUFFile(write_llama(tmp_path / "tiny.gguf", keys=whole)).tokenizer().encode("ab")[-1] == 3
    refused = 0
    for key in [*KEYS, *MORE.split()]:
        for value in WRONG:
            path = write_llama(tmp_path / "tiny.gguf", keys=whole | {key: value})
            try:
                GGUFFile(path).tokenizer()
            except InputError as error:
                assert "tiny.gguf" in str(error)
                refused += 1
    assert refused > 100

"""GGUF files against Transformers on torch: the same weights, the same logits; and what cannot be read is refused."""

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tiny_gguf import interleaved, model_tensors, write, write_llama, write_model
from tiny_hf import hf_logits, make_hf_model

from kljudge_jax.errors import InputError
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.gguf import GGUFFile
from kljudge_jax.models.weights import load

_GEMMA3_ROPE = {
    "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e4),
    "sliding_attention": dict(rope_type="default", rope_theta=100.0),
}
_SEVEN = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]

# By family of tiny_hf: what a GGUF file cannot say is changed in the model, what its converter leaves out is added.
CASES = {
    "llama2": ("llama2", {}, {}),
    "llama3": ("llama3", {}, {}),
    "smollm2": ("smollm2", {}, {}),
    "linear rope": (
        "llama2",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=1e3, factor=4.0)),
        {},
    ),
    "mistral": ("mistral", {}, {}),
    "qwen2": ("qwen2", dict(use_sliding_window=False), {}),
    "qwen3": ("qwen3", {}, {}),
    "qwen3-yarn": ("qwen3-yarn", {}, {}),
    "gemma2": ("gemma2", dict(query_pre_attn_scalar=16), {}),
    "gemma3": (
        "gemma3",
        dict(query_pre_attn_scalar=16, rope_parameters=_GEMMA3_ROPE, num_hidden_layers=7, layer_types=_SEVEN),
        {".rope.freq_base_swa": 100.0},
    ),
    "gemma3, every second layer": (
        "gemma3",
        dict(query_pre_attn_scalar=16, rope_parameters=_GEMMA3_ROPE),
        {".rope.freq_base_swa": 100.0, ".attention.sliding_window_pattern": 2},
    ),
}


@jax.jit
def forward(model, tokens):
    hidden, _ = model(tokens, KVCache.create(model.config, *tokens.shape))
    return model.logits(hidden)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, tmp_path):
    family, changes, keys = CASES[case]
    theirs = make_hf_model(family, **changes)
    ours = load(GGUFFile(write_model(tmp_path / "tiny.gguf", theirs, keys=keys)))
    tokens = np.random.default_rng(2).integers(0, theirs.config.vocab_size, (2, 24)).astype(np.int32)
    want = hf_logits(theirs, tokens)
    assert want.std() > 0.5, "the model says nothing: the test could not fail"
    np.testing.assert_allclose(np.asarray(forward(ours, tokens)), want, rtol=0, atol=1e-4)


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


def test_rope_frequencies_of_the_wrong_size(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", {"rope_freqs.weight": np.ones(3, np.float32)})
    with pytest.raises(InputError, match=r"rope_freqs\.weight of shape \(3,\) where \(2,\) is needed"):
        GGUFFile(path)


def test_a_factor_without_a_type_is_linear(tmp_path):
    for key in (".rope.scaling.factor", ".rope.scale_linear"):
        rope = GGUFFile(write_llama(tmp_path / "tiny.gguf", keys={key: 4.0})).config.rope
        assert (rope.scaling, rope.factor) == ("linear", 4.0)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A llama with biases, and its file with matrices in Q8_0."""
    theirs = make_hf_model("llama3", intermediate_size=64)
    path = tmp_path_factory.mktemp("gguf") / "q8.gguf"
    return theirs, write_model(path, theirs, GGMLQuantizationType.Q8_0)


def test_quantised_kernels_come_out_transposed_and_with_their_heads_in_order(quantised):
    theirs, path = quantised
    file = GGUFFile(path)
    for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj")):
        layer = getattr(theirs.model.layers[1].self_attn, projection)
        kernel = file.read(f"layers.1.attention.{name}.kernel")
        want = layer.weight.detach().numpy().T
        assert kernel.shape == want.shape == file.shapes()[f"layers.1.attention.{name}.kernel"]
        assert kernel.dtype == np.float32 and kernel.flags.c_contiguous
        np.testing.assert_allclose(kernel, want, rtol=0, atol=np.abs(want).max() / 127)
        np.testing.assert_array_equal(file.read(f"layers.1.attention.{name}.bias"), layer.bias.detach().numpy())
    np.testing.assert_allclose(
        file.read("embedding.table"), theirs.model.embed_tokens.weight.detach().numpy(), rtol=0, atol=0.02
    )


def test_interleaved_heads_matter(quantised):
    # The permutation of this test's own writer is no identity: reading without undoing it would be noticed.
    weight = quantised[0].model.layers[0].self_attn.q_proj.weight.detach().numpy()
    assert np.abs(interleaved(weight, 4) - weight).max() > 0.1
    assert "rope_freqs.weight" in model_tensors(quantised[0])


def test_large_matrices_are_read_in_chunks(tmp_path):
    want = np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32)
    path = write_llama(tmp_path / "tiny.gguf", {"output.weight": want, "extra.weight": want})
    file = GGUFFile(path)
    np.testing.assert_array_equal(file.read("head.kernel"), want.T)
    np.testing.assert_array_equal(file.read("extra.weight"), want)
    assert file.shapes()["extra.weight"] == (3000, 256) and not file.config.tied_head


def test_unknown_tensors_keep_their_names_and_the_loader_names_them(tmp_path):
    theirs = make_hf_model("llama2")
    path = tmp_path / "tiny.gguf"
    tensors = model_tensors(theirs) | {"blk.0.attn_rot.weight": np.ones(4, np.float32)}
    write_model(path, theirs)
    keys = {
        ".block_count": 2,
        ".context_length": 64,
        ".embedding_length": 32,
        ".feed_forward_length": 48,
        ".attention.head_count": 4,
        ".attention.head_count_kv": np.asarray([2, 2]).tolist(),
        ".attention.layer_norm_rms_epsilon": 1e-6,
    }
    file = GGUFFile(write(path, "llama", keys, tensors))
    assert file.config.num_kv_heads == 2
    with pytest.raises(InputError, match=r"blk\.0\.attn_rot\.weight is not known"):
        load(file)


def test_reading_one_tensor_does_not_read_the_file(tmp_path):
    import tracemalloc

    path = tmp_path / "large.gguf"
    small = np.arange(8, dtype=np.float32)
    write_llama(path, {"blk.0.ffn_norm.weight": small, "output.weight": np.ones((64, 8), np.float32)})
    # The last tensor grows to 4 GB: its first dimension is patched, and a hole in the file stands for its bytes.
    data = bytearray(path.read_bytes())
    at = data.index(b"output.weight") + len(b"output.weight") + 4 + 8
    assert data[at : at + 8] == (64).to_bytes(8, "little")
    data[at : at + 8] = (1 << 27).to_bytes(8, "little")
    path.write_bytes(data)
    with path.open("r+b") as stream:
        stream.truncate(len(data) + (1 << 32))
    tracemalloc.start()
    file = GGUFFile(path)
    assert file.shapes()["head.kernel"] == (8, 1 << 27)
    np.testing.assert_array_equal(file.read("layers.0.mlp_norm.scale"), small)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


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


def test_types_of_tensors_that_are_not_read_are_refused_by_name(tmp_path):
    kind = GGMLQuantizationType.Q2_K
    path = write_llama(tmp_path / "tiny.gguf", {"blk.0.ffn_up.weight": (np.zeros((2, 84), np.uint8), kind)})
    with pytest.raises(InputError, match=r"tensor blk\.0\.ffn_up\.weight of .*tiny\.gguf is stored as Q2_K"):
        GGUFFile(path)


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"])
def test_real_models_know_the_capital_of_france(name, models_dir):
    file = GGUFFile(f"{models_dir}/{name}")
    tokenizer = file.tokenizer()
    ids = np.asarray([tokenizer.encode("The capital of France is")], np.int32)
    assert tokenizer.decode([int(forward(load(file), ids)[0, -1].argmax())]) == " Paris"

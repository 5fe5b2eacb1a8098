"""GGUF files against Transformers on torch: the same weights, the same logits; and what cannot be read is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tiny_gguf import interleaved, model_tensors, write, write_llama, write_model
from tiny_hf import hf_logits, make_hf_model

from kljudge_jax.errors import InputError
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.gguf import GGUFFile
from kljudge_jax.models.linear import is_matrix
from kljudge_jax.models.transformer import parameters
from kljudge_jax.models.weights import SafetensorsFolder, load, storage_of

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
    features, _ = model(tokens, KVCache.create(model.config, *tokens.shape))
    return model.logits(features.hidden)


@pytest.mark.parametrize("case", CASES)
def test_a_file_says_what_the_folder_of_the_same_model_says(case, tmp_path):
    """Whose logits are compared with those of Transformers, by family, where folders are tested."""
    family, changes, keys = CASES[case]
    theirs = make_hf_model(family, **changes)
    theirs.save_pretrained(tmp_path / "folder")
    folder = SafetensorsFolder(tmp_path / "folder")
    file = GGUFFile(write_model(tmp_path / "tiny.gguf", theirs, keys=keys))
    assert file.shapes() == folder.shapes()
    for name in folder.shapes():
        np.testing.assert_array_equal(file.read(name), folder.read(name), err_msg=name)
    ours, wanted = (dataclasses.asdict(source.config) for source in (file, folder))
    if case == "llama3":  # the file holds what its converter made of the scaling
        ropes = [source.config.rope.frequencies(file.config.head_dim) for source in (file, folder)]
        np.testing.assert_allclose(*ropes, rtol=1e-6)
        del ours["rope"], wanted["rope"]
    if case == "mistral":  # which is a llama with a window
        assert (ours.pop("family"), wanted.pop("family")) == ("llama", "mistral")
    assert ours == wanted


# One whose scaling and one whose family a file says in another way, and one with two kinds of layers.
_FOR_EVERY_DAY = ("llama3", "mistral", "gemma3")


@pytest.mark.parametrize(
    "case", [case if case in _FOR_EVERY_DAY else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_logits_are_those_of_transformers(case, tmp_path):
    family, changes, keys = CASES[case]
    theirs = make_hf_model(family, **changes)
    ours = load(GGUFFile(write_model(tmp_path / "tiny.gguf", theirs, keys=keys)))
    tokens = np.random.default_rng(2).integers(0, theirs.config.vocab_size, (2, 24)).astype(np.int32)
    want = hf_logits(theirs, tokens)
    assert want.std() > 0.5, "the model says nothing: the test could not fail"
    np.testing.assert_allclose(np.asarray(forward(ours, tokens)), want, rtol=0, atol=1e-4)


def test_rope_frequencies_of_the_wrong_size(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", {"rope_freqs.weight": np.ones(3, np.float32)})
    with pytest.raises(InputError, match=r"rope_freqs\.weight of \[3\] F32 where \[2\] F32 is needed"):
        GGUFFile(path)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A llama with biases, and its file with matrices in Q8_0."""
    theirs = make_hf_model("llama3", intermediate_size=64)
    path = tmp_path_factory.mktemp("gguf") / "q8.gguf"
    return theirs, write_model(path, theirs, GGMLQuantizationType.Q8_0)


def test_quantised_weights_come_out_with_their_heads_in_order(quantised):
    theirs, path = quantised
    file = GGUFFile(path)
    for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj")):
        layer = getattr(theirs.model.layers[1].self_attn, projection)
        weight = file.read(f"layers.1.attention.{name}.weight")
        want = layer.weight.detach().numpy()
        assert weight.shape == want.shape == file.shapes()[f"layers.1.attention.{name}.weight"]
        assert weight.dtype == np.float32 and weight.flags.c_contiguous
        np.testing.assert_allclose(weight, want, rtol=0, atol=np.abs(want).max() / 127)
        np.testing.assert_array_equal(file.read(f"layers.1.attention.{name}.bias"), layer.bias.detach().numpy())
    np.testing.assert_allclose(
        file.read("embedding.table"), theirs.model.embed_tokens.weight.detach().numpy(), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_0"])
def test_a_model_in_the_integers_of_its_file_is_the_one_that_is_widened(kind, quantised, tmp_path):
    path = write_model(tmp_path / "kept.gguf", quantised[0], GGMLQuantizationType[kind])
    file = GGUFFile(path)
    kept, wide = load(file, storage_of(file, np.float32, "file", None)), load(file)
    assert str(kept.storage) == "the file's bits (float32)"
    stored = {name for name, x in parameters(kept).items() if x.dtype in (np.int8, np.uint8)}
    assert stored == {name for name in parameters(kept) if is_matrix(name)} and "embedding.table" in stored
    tokens = np.random.default_rng(2).integers(0, wide.config.vocab_size, (2, 24)).astype(np.int32)
    want, got = np.asarray(forward(wide, tokens)), np.asarray(forward(kept, tokens))
    # On one CPU device rows are rounded to 127 steps of the largest of 64; nothing else differs.
    assert np.abs(got - want).mean() < 0.05 * np.abs(want).mean()
    embedded = jax.jit(lambda model: model.embedding(tokens))
    np.testing.assert_allclose(embedded(kept), embedded(wide), rtol=1e-6)


def test_bits_of_a_file_that_has_none_are_refused(tmp_path):
    file = GGUFFile(write_model(tmp_path / "f32.gguf", make_hf_model("llama2")))
    with pytest.raises(InputError, match=r"f32\.gguf has no quantized matrix.*Q4_K_M"):
        storage_of(file, np.float32, "file", None)


def test_interleaved_heads_matter(quantised):
    # The permutation of this test's own writer is no identity: reading without undoing it would be noticed.
    weight = quantised[0].model.layers[0].self_attn.q_proj.weight.detach().numpy()
    assert np.abs(interleaved(weight, 4) - weight).max() > 0.1
    assert "rope_freqs.weight" in model_tensors(quantised[0])


def test_large_matrices_are_read_in_chunks(tmp_path):
    want = np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32)
    path = write_llama(tmp_path / "tiny.gguf", {"output.weight": want, "extra.weight": want})
    file = GGUFFile(path)
    np.testing.assert_array_equal(file.read("head.weight"), want)
    np.testing.assert_array_equal(file.read("extra.weight"), want)
    # Arrays of their own: a loader may keep them without a copy and without keeping the file.
    assert all(file.read(name).base is None for name in file.shapes())
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
    assert file.shapes()["head.weight"] == (1 << 27, 8)
    np.testing.assert_array_equal(file.read("layers.0.mlp_norm.scale"), small)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


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

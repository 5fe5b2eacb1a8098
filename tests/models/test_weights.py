"""Loading: shards, faults listed at once, dtypes, padded vocabularies, and how much of a file is held at a time."""

import json
import shutil
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_hf import make_hf_model

from kljudge_jax.errors import InputError
from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import abstract, parameters
from kljudge_jax.models.weights import SafetensorsFolder, load, resolve_dtype
from kljudge_jax.parallel.placement import Placement

FILE = "model.safetensors"


@pytest.fixture
def folder(hf_models, tmp_path):
    """A copy of the Llama 2 folder, to be broken."""
    return shutil.copytree(hf_models("llama2")[1], tmp_path / "model")


def rewrite(folder, change):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


@jax.jit
def forward(model, tokens):
    return model(tokens)[0].hidden


@jax.jit
def logits_of(model, hidden):
    return model.logits(hidden)


def same(one, other):
    one, other = parameters(one), parameters(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_missing_unknown_and_misshapen_tensors_are_listed_at_once(folder):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        tensors["lm_head.weight"] = np.zeros((63, 32), np.float32)

    rewrite(folder, change)
    with pytest.raises(InputError) as error:
        load(SafetensorsFolder(folder))
    for fault in (
        "layers.1.mlp.up.weight is missing",
        "final_norm.scale is missing",
        "layers.0.attention.query.bias is not known",
        "head.weight is [63, 32] instead of [64, 32]",
    ):
        assert fault in str(error.value)
    assert str(folder) in str(error.value) and str(error.value).count(" is ") == 4


def test_shards_give_the_same_model(hf_models, tmp_path):
    theirs, whole = hf_models("llama2")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(load(SafetensorsFolder(tmp_path)), load(SafetensorsFolder(whole)))

    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{shard.name} is broken"):
        SafetensorsFolder(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        SafetensorsFolder(tmp_path)
    shard.write_bytes(content)

    index = tmp_path / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    listing["weight_map"]["model.ghost.weight"] = shard.name
    index.write_text(json.dumps(listing))
    with pytest.raises(InputError, match=r"do not hold: model\.ghost\.weight"):
        SafetensorsFolder(tmp_path)
    listing["weight_map"]["model.ghost.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listing))
    with pytest.raises(InputError, match="weight_map of file names"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_named(folder, cut):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:cut])
    with pytest.raises(InputError, match=f"{FILE} is broken"):
        SafetensorsFolder(folder)


def test_pickles_are_refused_by_name_and_never_opened(folder):
    (folder / FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04not to be unpickled")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*never opened"):
        SafetensorsFolder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize(
    "text, message", [(None, "has no config.json"), ("{", "is no JSON"), ("[]", "expected object, got array")]
)
def test_a_folder_without_a_configuration_is_refused(folder, text, message):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        SafetensorsFolder(folder)


def test_other_stored_types_are_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.int8)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight.*I8"):
        load(SafetensorsFolder(folder))


@pytest.mark.parametrize("name", ["llama2", "gemma2"])
def test_bfloat16_files_and_models(hf_models, tmp_path, name):
    import torch

    theirs = make_hf_model(name).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    with safe_open(tmp_path / FILE, "np") as file:
        assert file.get_slice("model.norm.weight").get_dtype() == "BF16"
    model = load(SafetensorsFolder(tmp_path), Storage(jnp.bfloat16))
    values = parameters(model)
    stored = theirs.model.layers[0].mlp.up_proj.weight.detach().float().numpy()
    assert values["layers.0.mlp.up.weight"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(values["layers.0.mlp.up.weight"], np.float32), stored)
    # 1 + w in float32: in bfloat16 the sum would lose most of w.
    norm = theirs.model.norm.weight.detach().float().numpy() + (1 if name == "gemma2" else 0)
    assert values["final_norm.scale"].dtype == jnp.float32
    np.testing.assert_array_equal(values["final_norm.scale"], norm)


def test_what_float16_cannot_hold_is_refused(folder):
    rewrite(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].__setitem__((0, 0), 1e6))
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up\.weight.*float16: use bfloat16"):
        load(SafetensorsFolder(folder), Storage(jnp.float16))
    assert load(SafetensorsFolder(folder), Storage(jnp.bfloat16)).dtype == jnp.bfloat16


def test_vision_and_prefixes_of_gemma3(hf_models, tmp_path):
    theirs, folder = hf_models("gemma3")
    want = load(SafetensorsFolder(folder))
    config = {"model_type": "gemma3", "text_config": theirs.config.to_dict(), "vision_config": {}}
    for number, prefix in enumerate(("language_model.model.", "model.language_model.")):
        copy = tmp_path / str(number)
        copy.mkdir()
        tensors = {name.replace("model.", prefix, 1): value for name, value in load_file(folder / FILE).items()}
        tensors["vision_tower.vision_model.embeddings.weight"] = np.zeros(3, np.float32)
        save_file(tensors, copy / FILE)
        (copy / "config.json").write_text(json.dumps(config))
        assert same(load(SafetensorsFolder(copy)), want)


def test_a_tensor_under_two_names_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"norm.weight": tensors["model.norm.weight"]}))
    with pytest.raises(InputError, match=r"holds final_norm\.scale twice"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize("name", ["llama2", "smollm2"])
def test_a_padded_vocabulary_is_cut(hf_models, name):
    source = SafetensorsFolder(hf_models(name)[1])
    whole, model = load(source), load(source, vocab_size=50)
    assert model.config.vocab_size == 50 and whole.config.vocab_size == 64
    hidden = forward(whole, np.arange(5, dtype=np.int32)[None])
    np.testing.assert_allclose(logits_of(model, hidden), np.asarray(logits_of(whole, hidden))[..., :50], atol=1e-5)
    with pytest.raises(InputError, match="64 tokens: 65 cannot"):
        load(source, vocab_size=65)


class ZeroSource:
    """A checkpoint of zeros that remembers what it handed out."""

    where = "memory"
    config = TransformerConfig("llama", 1024, 256, 1024, 6, 4, 4, 64)

    def __init__(self):
        self.sizes = {name: leaf.shape for name, leaf in parameters(abstract(self.config)).items()}
        self.handed = []
        self.most_alive = 0

    def shapes(self):
        return self.sizes

    def read(self, name, part=None):
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.handed))
        shape = self.sizes[name] if part is None else tuple(cut.stop - cut.start for cut in part)
        array = np.zeros(shape, np.float32)
        self.handed.append(weakref.ref(array))
        return array


def test_the_host_holds_one_part_of_one_tensor_at_a_time(monkeypatch):
    source = ZeroSource()
    sizes = {name: 4 * int(np.prod(shape)) for name, shape in source.shapes().items()}
    load(source)  # once before measuring: compilers and caches
    source.handed.clear()
    source.most_alive = 0  # JAX may have adopted float32 arrays as they were: those are the model

    # A device's copy is not the host's memory: JAX's own buffers are not traced.
    monkeypatch.setattr(jax, "device_put", lambda array, device: jnp.array(array, copy=True, device=device))
    layout = Placement.parse("fsdp=2,tensor=2").target(source.config)
    tracemalloc.start()
    load(source, Storage(jnp.bfloat16, layout=layout))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    matrices = sum(len(shape) > 1 for shape in source.shapes().values())
    assert len(source.handed) == 4 * matrices + len(sizes) - matrices
    # JAX lets go of an array that it copied a moment later, so one may still be held.
    assert source.most_alive <= 1, "tensors were still held when the next one was read"
    # The part, its copy and the book-keeping of the tree; the whole model would be much more.
    assert peak < 2 * max(sizes.values()) / 4 + 2_500_000 < sum(sizes.values()) / 2


def test_dtypes_by_name():
    assert resolve_dtype("bfloat16") == jnp.bfloat16 and resolve_dtype("float16") == jnp.float16
    # The tests run on CPU, where bfloat16 is the faster one if the native products could be built.
    assert resolve_dtype("auto") in ([jnp.bfloat16] if library().ready else [jnp.bfloat16, jnp.float32])
    with pytest.raises(InputError, match=r"'int8'.*float32, bfloat16, float16 or auto"):
        resolve_dtype("int8")


@pytest.mark.parametrize("bits", [8, 4])
def test_matrices_are_rounded_as_they_are_loaded(bits, hf_models):
    _, folder = hf_models("llama3")
    whole, rounded = load(SafetensorsFolder(folder)), load(SafetensorsFolder(folder), Storage(bits=bits))
    values = parameters(rounded)
    assert values["layers.0.mlp.up.weight"].dtype == (jnp.int8 if bits == 8 else jnp.uint8)
    assert values["embedding.table"].dtype == jnp.int8 and values["final_norm.scale"].dtype == jnp.float32
    assert rounded.dtype == jnp.float32 and rounded.storage.bits == bits
    tokens = np.arange(12, dtype=np.int32)[None] % whole.config.vocab_size
    logits, wanted = (np.asarray(logits_of(model, forward(model, tokens))) for model in (rounded, whole))
    assert 0 < np.abs(logits - wanted).mean() < (0.05 if bits == 8 else 0.5) * np.abs(wanted).mean()

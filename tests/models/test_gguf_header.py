"""Headers of GGUF files: what is in them, and that no damage makes anything but an InputError."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from tiny_gguf import write_llama

from kljudge_jax.errors import InputError
from kljudge_jax.models.gguf import GGUFFile
from kljudge_jax.models.gguf_header import read_header

KEYS = {
    "general.name": "tiny \u00e9",
    ".count": 7,
    ".below": -7,
    ".epsilon": 1e-6,
    ".yes": True,
    "list.words": ["a", "", "\u4e16"],
    "list.numbers": [1, 2, 3],
    "list.floats": [0.5, 0.25],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<e>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{{ messages }}",
}


@pytest.fixture
def path(tmp_path):
    half = (np.arange(6, dtype=np.float16).reshape(2, 3), GGMLQuantizationType.F16)
    return write_llama(tmp_path / "tiny.gguf", {"odd.weight": half, "late.weight": np.ones((4, 2), np.float32)}, KEYS)


def test_metadata(path):
    metadata, _ = read_header(path)
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == "tiny \u00e9"
    assert (metadata["llama.count"], metadata["llama.below"]) == (7, -7)
    assert metadata["llama.epsilon"] == 1e-6
    assert metadata["llama.yes"] is True
    assert metadata["list.words"] == ["a", "", "\u4e16"]
    np.testing.assert_array_equal(metadata["list.numbers"], [1, 2, 3])
    np.testing.assert_array_equal(metadata["list.floats"], [0.5, 0.25])


def test_tensors_lie_where_the_reference_reader_finds_them(path):
    _, entries = read_header(path)
    reference = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert entries.keys() == reference.keys()
    for name, entry in entries.items():
        theirs = reference[name]
        assert (entry.start, entry.size, entry.kind) == (theirs.data_offset, theirs.n_bytes, theirs.tensor_type)
        assert entry.shape == tuple(theirs.shape.tolist())[::-1]


def test_files_that_are_not_gguf(tmp_path):
    missing, empty, text = tmp_path / "missing.gguf", tmp_path / "empty.gguf", tmp_path / "text.gguf"
    empty.touch()
    text.write_text("version https://git-lfs.github.com/spec/v1")
    cases = {missing: "does not exist", empty: "cannot be read", text: "not a GGUF file", tmp_path: "cannot be read"}
    for file, message in cases.items():
        with pytest.raises(InputError, match=f"{file.name} {message}|{file.name} is {message}"):
            read_header(file)


def patched(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize(("version", "message"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions_and_byte_orders(version, message, path):
    patched(path, b"GGUF" + (3).to_bytes(4, "little"), b"GGUF" + version.to_bytes(4, "little"))
    with pytest.raises(InputError, match=message):
        read_header(path)


def test_a_type_of_tensor_from_the_future(path):
    dimensions = (2).to_bytes(4, "little") + (2).to_bytes(8, "little") + (4).to_bytes(8, "little")
    before = b"late.weight" + dimensions
    patched(path, before + (0).to_bytes(4, "little"), before + (999).to_bytes(4, "little"))
    with pytest.raises(InputError, match=r"tensor late\.weight has type number 999"):
        read_header(path)


def test_a_tensor_without_numbers(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", {"late.weight": np.ones(0x1234, np.float32)})
    patched(path, (0x1234).to_bytes(8, "little"), (0).to_bytes(8, "little"))
    with pytest.raises(InputError, match=r"tensor 'late\.weight' has shape \(0,\)"):
        read_header(path)


@pytest.mark.parametrize(("old", "new"), [(b"list.floats", b"list.number"), (b"late.weight", b"norm.weight")])
def test_a_name_that_appears_twice(old, new, tmp_path):
    keys = {"list.floats": [0.5], "list.number": [1]}
    tensors = {"late.weight": np.ones(2, np.float32), "norm.weight": np.ones(2, np.float32)}
    path = patched(write_llama(tmp_path / "tiny.gguf", tensors, keys), old, new)
    with pytest.raises(InputError, match=f"{new.decode()}' appears twice"):
        read_header(path)


def test_counts_larger_than_the_file_are_not_believed(path):
    words = (8).to_bytes(4, "little")  # an array of strings
    patched(path, words + (3).to_bytes(8, "little"), words + (1 << 60).to_bytes(8, "little"))
    with pytest.raises(InputError, match=r"damaged GGUF file .*1152921504606846976 items"):
        read_header(path)


def test_a_file_cut_short_says_so(path):
    path.write_bytes(path.read_bytes()[:-32])
    with pytest.raises(InputError, match=r"tiny\.gguf is cut short: tensor late\.weight ends at byte"):
        GGUFFile(path)


def test_no_cut_makes_anything_but_an_input_error(path):
    data = path.read_bytes()
    for size in [*range(1, 200), *range(200, len(data) - 31, 17)]:
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"tiny\.gguf"):
            GGUFFile(path)


def test_no_damage_makes_anything_but_an_input_error(path):
    data = path.read_bytes()
    rng = np.random.default_rng(6)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for at in rng.integers(4, len(data), rng.integers(1, 4)):
            damaged[at] = rng.choice([0, 1, 255, rng.integers(256)])
        path.write_bytes(damaged)
        try:
            file = GGUFFile(path)
            file.tokenizer()
            for name in file.shapes():
                file.read(name)
        except InputError as error:
            assert "tiny.gguf" in str(error)
            refused += 1
    assert 100 < refused < 390

"""Our own folders: what is written comes back bit for bit, and nothing else is taken for one."""

import dataclasses
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hf import FAMILIES, make_tokenizer
from tiny_pairs import rounded, tiny_model

from kljudge_jax.errors import InputError
from kljudge_jax.models import orbax
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.orbax import OrbaxFolder, is_ours, save
from kljudge_jax.models.transformer import assemble, parameters
from kljudge_jax.models.weights import SafetensorsFolder, load
from kljudge_jax.records import convert


@pytest.fixture
def model(hf_models):
    return load(SafetensorsFolder(hf_models("gemma3")[1]), Storage(jnp.bfloat16))


@pytest.fixture
def folder(model, tmp_path):
    save(tmp_path / "model", model, make_tokenizer(template="{{ messages }}"), eos=(1, 7))
    return tmp_path / "model"


def bits(model):
    return {name: (leaf.dtype, np.asarray(leaf).tobytes()) for name, leaf in parameters(model).items()}


def test_round_trip_is_bit_exact(folder, model):
    source = OrbaxFolder(folder)
    again = load(source, Storage(jnp.bfloat16))
    assert again.config == model.config and bits(again) == bits(model)
    assert source.eos == (1, 7)
    assert source.tokenizer().get_vocab() == make_tokenizer().get_vocab()
    assert source.tokenizer().chat_template == "{{ messages }}"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_configuration_comes_back(hf_models, tmp_path, name):
    config = SafetensorsFolder(hf_models(name)[1]).config
    divided = dataclasses.replace(config, rope=dataclasses.replace(config.rope, frequency_divisors=(1.0, 8.0)))
    for each in (config, divided):
        stored = orbax.ModelManifest(config=each, crc32={})
        again = convert(stored.to_dict(), orbax.ModelManifest, "there", exact=True)
        assert again == stored
        hash(again.config)


def test_a_model_of_no_tokenizer(model, tmp_path):
    save(tmp_path / "bare", model)
    assert OrbaxFolder(tmp_path / "bare").tokenizer() is None and OrbaxFolder(tmp_path / "bare").eos == ()


def test_a_sharded_model_is_saved_whole(model, tmp_path):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("x",))
    spread = {
        name: jax.device_put(leaf, jax.NamedSharding(mesh, jax.P("x") if leaf.ndim == 2 else jax.P()))
        for name, leaf in parameters(model).items()
    }
    save(tmp_path / "spread", assemble(model.config, spread))
    assert bits(load(OrbaxFolder(tmp_path / "spread"), Storage(jnp.bfloat16))) == bits(model)


def test_no_more_than_a_layer_waits_in_memory(folder):
    source = OrbaxFolder(folder)
    alive, most = [], 0
    for name in parameters(load(source)):
        alive.append(weakref.ref(source.read(name)))
        most = max(most, sum(ref() is not None for ref in alive) + len(source._waiting))
    layer = [name for name in source.shapes() if name.startswith("layers.0.")]
    assert most <= len(layer) < len(source.shapes()) / 2


def test_the_folder_does_not_say_where_it_was_written(folder):
    here = str(folder.parent).encode()
    for file in folder.rglob("*"):
        assert not file.is_file() or here not in file.read_bytes(), file


def test_a_folder_that_holds_something_is_not_written_over(folder, model):
    with pytest.raises(InputError, match="not an empty folder"):
        save(folder, model)
    with pytest.raises(InputError, match="not an empty folder"):
        save(folder / "model.json", model)


def test_a_folder_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder of results"):
        save(tmp_path / "file" / "model", model)


def test_foreign_folders_are_refused(tmp_path):
    assert not is_ours(tmp_path)
    with pytest.raises(InputError, match=r"has no model\.json: give a folder that kljudge convert wrote"):
        OrbaxFolder(tmp_path)
    (tmp_path / "model.json").write_text('{"format": "another"}')
    with pytest.raises(InputError, match=r'is of format "another", and this version reads "kljudge_jax.model"'):
        OrbaxFolder(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(version=3), "is of version 3, and this version reads 2"),
        (dict(config={}), "field config: object missing required field family"),
        (dict(crc32={}), "and weights do not both have embedding.table"),
        (dict(extra=1), "field extra: is no field of this format"),
        (dict(eos="end"), "field eos: expected array, got str"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, message):
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=message):
        OrbaxFolder(folder)


def test_an_unknown_option_is_refused(folder):
    manifest = json.loads((folder / "model.json").read_text())
    manifest["config"]["experts"] = 8
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="experts"):
        OrbaxFolder(folder)


def test_a_flipped_bit_is_noticed(folder):
    largest = max(folder.glob("weights/**/d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        load(OrbaxFolder(folder))


# Orbax reads a layer's arrays together; those that fail after the first one complain to an event loop that is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lost_files_are_noticed(folder):
    for file in folder.glob("weights/**/d/*"):
        file.unlink()
    with pytest.raises(InputError, match=r"weights is (damaged|no Orbax)"):
        load(OrbaxFolder(folder))
    (folder / "weights" / "_METADATA").unlink()
    with pytest.raises(InputError, match="no Orbax checkpoint"):
        OrbaxFolder(folder)


def test_rounded_weights_are_not_saved(tmp_path):
    with pytest.raises(InputError, match="int8"):
        save(tmp_path / "rounded", rounded(tiny_model()))
    assert not (tmp_path / "rounded").exists()

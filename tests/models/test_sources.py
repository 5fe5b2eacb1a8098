"""What a model's name stands for, and what the hub may answer."""

import json

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny_hf import make_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.models.orbax import OrbaxFolder, save
from kljudge_jax.models.sources import download, open_checkpoint, open_tokenizer
from kljudge_jax.models.weights import SafetensorsFolder, load


@pytest.fixture
def hub(monkeypatch, hf_models):
    """A hub that has every model under every name; returns the calls that reached it."""
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(hf_models("llama2")[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_local_folder_is_local(hf_models, hub, monkeypatch):
    folder = hf_models("llama2")[1]
    assert isinstance(open_checkpoint(folder), SafetensorsFolder)
    monkeypatch.chdir(folder.parent)
    assert isinstance(open_checkpoint(folder.name), SafetensorsFolder)
    assert open_checkpoint(folder).eos == (1,) and open_checkpoint(folder).tokenizer().eos_token == "</s>"
    assert hub == []
    with pytest.raises(InputError, match="is local, and only a hub id has a revision"):
        open_checkpoint(folder, revision="v1")


def test_our_own_folder_is_ours(hf_models, tmp_path):
    save(tmp_path / "ours", load(SafetensorsFolder(hf_models("llama2")[1])))
    assert isinstance(open_checkpoint(tmp_path / "ours"), OrbaxFolder)


@pytest.mark.parametrize(
    "name", ["./nowhere", "../nowhere", "/nowhere", "~/nowhere", "~nobody/x", "nowhere/model.gguf", "x.gguf"]
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(name, hub):
    with pytest.raises(InputError, match=f"^{name}: no such folder or file: check the path"):
        open_checkpoint(name)
    assert hub == []


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.bin is no model"):
        open_checkpoint(tmp_path / "model.bin")


def test_a_hub_id_is_downloaded_at_its_revision(hub):
    source = open_checkpoint("maker/model", revision="v1.1")
    assert isinstance(source, SafetensorsFolder)
    [(name, options)] = hub
    assert name == "maker/model" and options["revision"] == "v1.1"
    assert "*.safetensors" in options["allow_patterns"] and "*.json" in options["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in options["allow_patterns"])


def test_a_tokenizer_alone_needs_no_weights(hub, hf_models):
    assert open_tokenizer("maker/model").get_vocab() == make_tokenizer().get_vocab()
    [(_, options)] = hub
    assert "*.safetensors" not in options["allow_patterns"]
    assert open_tokenizer(hf_models("llama2")[1]).eos_token_id == 1
    with pytest.raises(InputError, match=r"no such folder or \.gguf file"):
        open_tokenizer("./nowhere")


class Response:
    """As much of an answer as the hub's errors look at."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None
    status_code = 404


@pytest.mark.parametrize(
    "error, message",
    [
        (errors.RepositoryNotFoundError("404", response=Response()), "no such model on the hub"),
        (errors.GatedRepoError("403", response=Response()), "is gated: accept its terms"),
        (errors.RevisionNotFoundError("404", response=Response()), "has no revision v9"),
        (
            ConnectionError("no route to host\nand a long trace"),
            "revision v9 is not here.*downloaded.*: no route to host$",
        ),
        (OSError(28, "No space left on device"), "cannot be downloaded.*No space left"),
    ],
)
def test_the_hubs_errors_are_one_sentence(monkeypatch, error, message):
    def snapshot_download(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=message):
        open_checkpoint("maker/model", revision="v9")


def test_an_impossible_name_is_refused_before_the_network():
    with pytest.raises(InputError, match="a b: no such folder or file, and no name that a hub model can have"):
        download("a b")


@pytest.fixture
def cache(tmp_path, monkeypatch, hf_models):
    """The hub's cache as a download leaves it, holding two revisions of one model; there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--maker--model"
    (model / "refs").mkdir(parents=True)
    for revision, commit, eos in (("main", "a" * 40, 5), ("v1", "b" * 40, 6)):
        (model / "refs" / revision).write_text(commit)
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in hf_models("llama2")[1].iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
        (snapshot / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return tmp_path


def test_a_cached_model_needs_no_network(cache):
    assert open_checkpoint("maker/model").eos == (5,)
    assert open_checkpoint("maker/model", revision="v1").eos == (6,)
    with pytest.raises(InputError, match="maker/other is not here and cannot be downloaded"):
        open_checkpoint("maker/other")

"""What a model's name stands for: a hub id, a local folder or a .gguf file, opened as one kind of thing."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kljudge_jax.errors import InputError
from kljudge_jax.models.draft_heads import HeadSource, check_no_head_below, kind_of, open_head
from kljudge_jax.models.tokenizer import load_tokenizer
from kljudge_jax.models.weights import SafetensorsFolder, TensorSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
# Pickled weights, training state and a second copy of the weights in the vendor's own names stay on the hub.
_UNWANTED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "runs/*"]


class Checkpoint(TensorSource, Protocol):
    """A source of tensors that also knows how its texts are written."""

    @property
    def eos(self) -> tuple[int, ...]:
        """Every id that ends a text, as the checkpoint says; empty if it does not."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer; None if it came without."""
        ...


def open_checkpoint(name: str | Path, revision: str | None = None) -> Checkpoint:
    """Opens a model; no weight is read yet.

    Args:
      name: a local folder (safetensors, or ours), a .gguf file, or a hub id, which is downloaded.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such model, it cannot be downloaded, or it does not run here.
    """
    path = _located(name, revision)
    if path.is_dir():
        from kljudge_jax.models.orbax import OrbaxFolder, is_ours

        kind = kind_of(path)
        if kind is not None:
            raise InputError(f"{name} is a head ({kind}), which is no model of its own: give it as the draft")
        return OrbaxFolder(path) if is_ours(path) else SafetensorsFolder(path)
    if not path.exists():
        raise InputError(f"{name}: no such folder or file: check the path, or give a hub id such as owner/model")
    if path.suffix != ".gguf":
        raise InputError(f"{name} is no model: give a folder, a .gguf file or a hub id")
    from kljudge_jax.models.gguf import GGUFFile

    return GGUFFile(path)


def open_draft(name: str | Path, revision: str | None = None) -> Checkpoint | HeadSource:
    """Opens a model or a head that can draft; as `open_checkpoint`."""
    path = _located(name, revision)
    if path.is_dir() and kind_of(path) is not None:
        return open_head(path)
    check_no_head_below(path, name)
    return open_checkpoint(path)


def _located(name: str | Path, revision: str | None) -> Path:
    """Where it lies; downloaded, if it is a hub id."""
    path = Path(os.path.expanduser(name))
    if not path.exists() and not looks_like_path(str(name)):
        return download(str(name), revision)
    if revision is not None:
        raise InputError(f"{name} is local, and only a hub id has a revision: leave out {revision!r}")
    return path


def open_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder, a .gguf file or a hub id.

    Raises:
      InputError: there is none.
    """
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf" and path.is_file():
        from kljudge_jax.models.gguf import GGUFFile

        tokenizer = GGUFFile(path).tokenizer()
        if tokenizer is None:
            raise InputError(f"{name} has no tokenizer: name another file or folder")
        return tokenizer
    if not path.exists() and not looks_like_path(str(name)):
        path = download(str(name), weights=False)
    if not path.is_dir():
        raise InputError(f"{name}: no such folder or .gguf file: check the path, or give a hub id such as owner/model")
    return load_tokenizer(path)


def download(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local copy of a model on the Hugging Face hub, or of its text files alone.

    Raises:
      InputError: the hub has no such model or revision, or cannot be reached.
    """
    importlib.import_module("kljudge_jax.models.quiet_transformers")  # before the hub's progress bars are
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at revision {revision}" if revision else ""
    wanted = [*_TEXT_FILES, "*.safetensors"] if weights else _TEXT_FILES
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED)
    except HFValidationError as error:
        raise InputError(f"{name}: no such folder or file, and no name that a hub model can have") from error
    except GatedRepoError as error:
        raise InputError(f"{name} is gated: accept its terms on the hub, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name}: no such folder or file, and no such model on the hub (or it is private)") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision} on the hub: name a branch, a tag or a commit") from error
    except Exception as error:  # the network's errors are of many kinds and libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name}{at} is not here and cannot be downloaded, check its name and the network: {reason}"
        ) from error
    return Path(folder)


def looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf")

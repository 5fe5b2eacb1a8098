"""Drafts that are heads of a target, and no models: which folders hold one, and what opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import safetensors

from kljudge_jax.errors import InputError
from kljudge_jax.models import dflash, eagle3
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.dflash import DFlashConfig
from kljudge_jax.models.eagle3 import Eagle3Config
from kljudge_jax.models.json_file import read_foreign
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.weights import TensorSource

HeadConfig = Eagle3Config | DFlashConfig
"""The shape of a head."""


class HeadSource(TensorSource, Protocol):
    """A head on disk.

    Attributes:
      config: of its layers.
    """

    def fitted(self, target: TransformerConfig) -> Any:
        """Its shape for a target of that one. InputError says all that does not fit."""
        ...

    def load(self, config: Any, storage: Storage) -> Any:
        """The head of that shape."""
        ...


def kind_of(folder: Path) -> str | None:
    """Which kind of head a folder holds, as a person calls it; None if it holds a model, or nothing."""
    if not (folder / "config.json").is_file():
        return None
    options = read_foreign(folder / "config.json")
    named = options.get("architectures")
    architectures = " ".join(map(str, named)).lower() if isinstance(named, list) else ""
    if "dflash" in architectures or "dflash_config" in options:
        return "DFlash"
    if "eagle3" in architectures or "draft_vocab_size" in options or "eagle_config" in options:
        return "EAGLE-3"
    # Those say that they are a model of the target's family, with one layer.
    if "eagle" in architectures or (options.get("num_hidden_layers") == 1 and "fc.weight" in _tensors(folder)):
        raise InputError(f"{folder} is a head of EAGLE-1 or EAGLE-2: give an EAGLE-3 head")
    return None


def check_no_head_below(folder: Path, name: str | Path) -> None:
    """Raises `InputError` for a folder of `train-draft`, and says where in it the head lies."""
    head = folder / "head"
    if not (folder / "config.json").exists() and (kind := kind_of(head)) is not None:
        raise InputError(f"{name} is neither a model nor a head: did you mean {Path(name) / 'head'}, an {kind} head?")


def _tensors(folder: Path) -> set[str]:
    """The names of what a folder of one file holds; none where it is broken, which is said when it is opened."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return set()
    try:
        with safetensors.safe_open(str(file), framework="np") as opened:
            return set(opened.keys())
    except (safetensors.SafetensorError, OSError):
        return set()


def open_head(folder: Path) -> HeadSource:
    """Opens a head; no weight is read yet.

    Raises:
      InputError: it is broken, or none that runs here.
    """
    from kljudge_jax.models.dflash_files import DFlashFolder
    from kljudge_jax.models.eagle3_files import Eagle3Folder

    kinds: dict[str | None, Callable[[Path], HeadSource]] = {"EAGLE-3": Eagle3Folder, "DFlash": DFlashFolder}
    return kinds[kind_of(folder)](folder)


def abstract_head(config: HeadConfig, storage: Storage = Storage()) -> Any:  # noqa: B008 - frozen
    """The head with a `ShapeDtypeStruct` in place of each parameter."""
    if isinstance(config, DFlashConfig):
        return dflash.abstract(config, storage)
    return eagle3.abstract(config, storage)


def decoder_of(config: Any) -> TransformerConfig:
    """The shape of the layers of a model, or of a head, of that configuration."""
    return getattr(config, "decoder", config)

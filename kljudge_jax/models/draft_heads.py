"""Drafts that are heads of a target, and no models: which folders hold one, and what opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.json_file import read_foreign
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.weights import TensorSource


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
    if "eagle3" in architectures or "draft_vocab_size" in options or "eagle_config" in options:
        return "EAGLE-3"
    if "eagle" in architectures:
        raise InputError(f"{folder} is a head of EAGLE-1 or EAGLE-2: give an EAGLE-3 head")
    return None


def open_head(folder: Path) -> HeadSource:
    """Opens a head; no weight is read yet.

    Raises:
      InputError: it is broken, or none that runs here.
    """
    from kljudge_jax.models.eagle3_files import Eagle3Folder

    assert kind_of(folder) == "EAGLE-3"
    return Eagle3Folder(folder)

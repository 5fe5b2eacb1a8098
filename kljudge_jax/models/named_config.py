"""The configuration of a model by its name, without its weights."""

from __future__ import annotations

import os
from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.families import config_from_hf
from kljudge_jax.models.json_file import read_foreign
from kljudge_jax.models.shapes import SHAPES, shape_config
from kljudge_jax.models.sources import download, looks_like_path, open_checkpoint


def named_config(name: str | Path, revision: str | None = None) -> TransformerConfig:
    """What a model is, of which no weight is read or downloaded.

    Args:
      name: a published shape such as "llama-3.1-8b" or "llama-3.1-8b:layers=4", a folder, a .gguf file or a hub id.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such model, or none that runs here.
    """
    path = Path(os.path.expanduser(name))
    if str(name).partition(":")[0].strip() in SHAPES and not path.exists():
        return shape_config(str(name))
    if path.exists() or looks_like_path(str(name)):
        if (path / "config.json").is_file():
            return config_from_hf(read_foreign(path / "config.json"))
        return open_checkpoint(path).config
    if "/" not in str(name):
        raise InputError(
            f"{name!r} is no folder, no .gguf file, no hub id such as owner/model, and no shape of {', '.join(SHAPES)}"
        )
    return config_from_hf(read_foreign(download(str(name), revision, weights=False) / "config.json"))

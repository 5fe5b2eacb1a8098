"""The configuration of a model by its name, without its weights."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.draft_heads import HeadConfig, check_no_head_below, kind_of, open_head
from kljudge_jax.models.families import config_from_hf
from kljudge_jax.models.json_file import read_foreign
from kljudge_jax.models.shapes import HEADS, SHAPES, head_shape, is_head_shape, shape_config
from kljudge_jax.models.shipped import shipped_draft, shipped_folder
from kljudge_jax.models.sources import download, looks_like_path, open_checkpoint


def named_config(name: str | Path, revision: str | None = None) -> TransformerConfig:
    """What a model is, of which no weight is read or downloaded.

    Args:
      name: a published shape such as "llama-3.1-8b" or "llama-3.1-8b:layers=4", a folder, a .gguf file, a hub id, or
        "embedded" for the package's target.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such model, or none that runs here.
    """
    if name == "embedded":
        return named_config(shipped_folder() / "target")
    path = Path(os.path.expanduser(name))
    if str(name).partition(":")[0].strip() in SHAPES and not path.exists():
        return shape_config(str(name))
    if path.exists() or looks_like_path(str(name)):
        kind = kind_of(path)
        if kind is not None:
            raise InputError(f"{name} is an {kind} head, which is no model of its own: give it as the draft")
        if (path / "config.json").is_file():
            return config_from_hf(read_foreign(path / "config.json"))
        return open_checkpoint(path).config
    if is_head_shape(str(name)):
        raise InputError(f"{name!r} is the shape of a head, which is no model of its own: give it as the draft")
    if "/" not in str(name):
        raise InputError(
            f"{name!r} is no folder, no .gguf file, no hub id such as owner/model, and no shape of {', '.join(SHAPES)}"
        )
    folder = download(str(name), revision, weights=False)
    kind = kind_of(folder)
    if kind is not None:
        raise InputError(
            f"{name} is an {kind} head: give it as the draft, by a folder with its weights, whose shapes are read, or "
            f"by a shape such as {HEADS[0]}:vocab=32000"
        )
    return config_from_hf(read_foreign(folder / "config.json"))


def named_draft(name: str | Path, target: TransformerConfig) -> TransformerConfig | HeadConfig:
    """What a draft is, a model or a head of that target, of which no weight is read or downloaded.

    Args:
      name: as `named_config` takes it, the folder of a head, a head's shape such as "eagle3:vocab=32000", or a draft of
        the package, "embedded" or "embedded:head".
      target: the target's configuration, with its whole vocabulary.

    Raises:
      InputError: there is no such draft, or it is a head of another target.
    """
    name = shipped_draft(name)[0] or name
    path = Path(os.path.expanduser(name))
    if path.is_dir() and kind_of(path) is not None:
        return open_head(path).fitted(target)
    check_no_head_below(path, name)
    return head_shape(str(name), target) if is_head_shape(str(name)) and not path.exists() else named_config(name)


def named_pair(
    target: str | Path, draft: str | Path | None
) -> tuple[TransformerConfig, TransformerConfig | HeadConfig | None]:
    """Both of a pair, with the vocabulary that they share, to which a loaded pair is cut; None is no draft.

    Raises:
      InputError: there is no such model, or a head is of another target.
    """
    ours = named_config(target)
    theirs = None if draft is None else named_draft(draft, ours)
    if not isinstance(theirs, TransformerConfig):  # a head has the target's tokens
        return ours, theirs
    vocab = min(ours.vocab_size, theirs.vocab_size)
    return dataclasses.replace(ours, vocab_size=vocab), dataclasses.replace(theirs, vocab_size=vocab)

"""A trained head in a folder: Orbax for the weights, and a manifest that nothing can be changed behind.

`judge.json` says what the head reads, which pair it is for and how it was trained, with the SHA-256 of every file of
`weights/` and of itself. All are checked before anything is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from kljudge_jax.errors import InputError
from kljudge_jax.judges.training import TrainedJudge
from kljudge_jax.models.json_file import read_json
from kljudge_jax.models.orbax import check_destination
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.shipped import shipped_folder
from kljudge_jax.results_folder import write_json
from kljudge_jax.verification.features import SETUPS
from kljudge_jax.verification.head import Head, PairIdentity

# The name of the judge that comes with the package, in place of a folder.
EMBEDDED = "embedded"

_MANIFEST = "judge.json"
_FORMAT = "kljudge_jax.judge"
_VERSION = 1


def save_judge(folder: str | Path, judge: TrainedJudge, origin: Mapping[str, Any]) -> None:
    """Writes a trained head to a new folder.

    Args:
      folder: does not exist, or is empty.
      judge: what `judges.training.fit_judge` returned.
      origin: of the dataset it was fitted to: `Dataset.origin`.

    Raises:
      InputError: the folder holds something, or cannot be written.
    """
    save_head(folder, judge.head, {"training": judge.to_json(), "data": dict(origin)})


def save_head(folder: str | Path, head: Head, about: Mapping[str, Any]) -> None:
    """Writes a head to a new folder, with plain JSON about it. Raises `InputError` as `save_judge` does."""
    folder = check_destination(folder)
    arrays = {"mean": np.asarray(head.mean), "scale": np.asarray(head.scale)}
    for i, (kernel, bias) in enumerate(head.layers):
        arrays |= {f"layers.{i}.kernel": np.asarray(kernel), f"layers.{i}.bias": np.asarray(bias)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder / "weights", arrays)
        # Orbax notes the path it wrote to; a folder that will be handed on keeps it to itself.
        (folder / "weights" / "commit_success.txt").write_text("Checkpoint commit was successful.\n")
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "setup": head.setup,
            "pair": None if head.pair is None else dataclasses.asdict(head.pair),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            **about,
            "sha256": _digests(folder / "weights"),
        }
        manifest = json.loads(json.dumps(manifest))
        manifest["manifest_sha256"] = _own_digest(manifest)
        # Last, so that a folder that was cut short is not taken for a judge.
        write_json(folder / _MANIFEST, manifest)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error


def load_head(folder: str | Path, pair: ModelPair | None = None) -> Head:
    """Reads a head.

    Args:
      folder: what `save_judge` wrote; "embedded" is the judge of the embedded pair, which comes with the package.
      pair: the pair it is meant for; None leaves that to `Head.check_pair`.

    Raises:
      InputError: the folder is no judge, a file of it was changed, or it was trained for another pair.
    """
    folder = _resolved(folder)
    manifest = read_manifest(folder)
    found = _digests(folder / "weights")
    changed = sorted(name for name in {*found, *manifest["sha256"]} if found.get(name) != manifest["sha256"].get(name))
    if changed:
        raise InputError(f"{folder / 'weights' / changed[0]} is not the file that was saved: train or copy it again")
    shapes = manifest["shapes"]
    try:
        arguments = ocp.args.PyTreeRestore(
            item={name: 0 for name in shapes},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes},
        )
        arrays = ocp.PyTreeCheckpointer().restore(folder / "weights", args=arguments)
        count = sum(name.endswith(".kernel") for name in shapes)
        layers = tuple((arrays[f"layers.{i}.kernel"], arrays[f"layers.{i}.bias"]) for i in range(count))
        identity = None if manifest["pair"] is None else PairIdentity(**manifest["pair"])
        head = Head(arrays["mean"], arrays["scale"], layers, manifest["setup"], identity)
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        raise InputError(f"{folder} is no judge that can be read, train or copy it again: {error}") from error
    if pair is not None:
        head.check_pair(pair)
    return head


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `judge.json` says. Raises `InputError` if there is none, or it was changed."""
    path = _resolved(folder) / _MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} has no {_MANIFEST}: give a folder that kljudge train-judge wrote")
    manifest = read_json(path)
    if manifest.get("format") != _FORMAT or manifest.get("version") != _VERSION:
        raise InputError(f"{path} is not of version {_VERSION} of {_FORMAT}: train the judge again")
    if manifest.get("manifest_sha256") != _own_digest(manifest) or manifest.get("setup") not in SETUPS:
        raise InputError(f"{path} is not the file that was saved: train or copy it again")
    return manifest


def _resolved(folder: str | Path) -> Path:
    return (shipped_folder() / "judge" if folder == EMBEDDED else Path(folder)).expanduser().absolute()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _own_digest(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

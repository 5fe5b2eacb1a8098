"""A trained head in a folder: Orbax for the weights, and a manifest that nothing can be changed behind.

`judge.json` says what the head reads, which pair it is for and how it was trained, with the SHA-256 of every file of
`weights/` and of itself. All are checked before anything is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orbax.checkpoint as ocp
from msgspec import structs

from kljudge_jax.errors import InputError
from kljudge_jax.judges.training import TrainedJudge
from kljudge_jax.models.orbax import check_destination, saving
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.shipped import shipped_folder
from kljudge_jax.records import Count, Record, convert, read, write
from kljudge_jax.results_folder import results_folder
from kljudge_jax.verification.features import SETUPS
from kljudge_jax.verification.head import Head, PairIdentity

# The name of the judge that comes with the package, in place of a folder.
EMBEDDED = "embedded"

_MANIFEST = "judge.json"
_ADVICE = "train or copy the judge again"


class JudgeManifest(Record, frozen=True, kw_only=True):
    """What a trained head is (`judge.json`).

    Attributes:
      setup: what it reads, of `verification.features.SETUPS`.
      pair: the pair it is for; None for any.
      shapes: of its arrays, by name.
      training, data: how it was trained, and the origin of the data; None where nobody said.
      sha256: of every file of `weights/`.
      manifest_sha256: of everything else in this file, keys in order.
    """

    format: Literal["kljudge_jax.judge"] = "kljudge_jax.judge"
    version: Literal[1] = 1
    setup: str
    pair: PairIdentity | None
    shapes: dict[str, tuple[Count, ...]]
    training: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    sha256: dict[str, str]
    manifest_sha256: str


def save_judge(folder: str | Path, judge: TrainedJudge, origin: Mapping[str, Any]) -> None:
    """Writes a trained head to a new folder.

    Args:
      folder: does not exist, or is empty.
      judge: what `judges.training.fit_judge` returned.
      origin: of the dataset it was fitted to: `Dataset.origin`.

    Raises:
      InputError: the folder holds something, or cannot be made.
      OSError: it cannot be written, as on a full disk.
    """
    save_head(folder, judge.head, {"training": judge.to_json(), "data": dict(origin)})


def save_head(folder: str | Path, head: Head, about: Mapping[str, Any]) -> None:
    """Writes a head to a new folder, with plain JSON about it. Raises as `save_judge` does."""
    folder = check_destination(folder)
    arrays = {"mean": np.asarray(head.mean), "scale": np.asarray(head.scale)}
    for i, (kernel, bias) in enumerate(head.layers):
        arrays |= {f"layers.{i}.kernel": np.asarray(kernel), f"layers.{i}.bias": np.asarray(bias)}
    with saving(results_folder(folder)):
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder / "weights", arrays)
        # Orbax notes the path it wrote to; a folder that will be handed on keeps it to itself.
        (folder / "weights" / "commit_success.txt").write_text("Checkpoint commit was successful.\n")
        manifest = JudgeManifest(
            setup=head.setup,
            pair=head.pair,
            shapes={name: array.shape for name, array in arrays.items()},
            **about,
            sha256=_digests(folder / "weights"),
            manifest_sha256="",
        )
        # Last, so that a folder that was cut short is not taken for a judge.
        write(folder / _MANIFEST, structs.replace(manifest, manifest_sha256=_own_digest(manifest.to_dict())))


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
    changed = sorted(name for name in {*found, *manifest.sha256} if found.get(name) != manifest.sha256.get(name))
    if changed:
        raise InputError(f"{folder / 'weights' / changed[0]} is not the file that was saved: train or copy it again")
    shapes = manifest.shapes
    try:
        arguments = ocp.args.PyTreeRestore(
            item={name: 0 for name in shapes},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes},
        )
        arrays = ocp.PyTreeCheckpointer().restore(folder / "weights", args=arguments)
        count = sum(name.endswith(".kernel") for name in shapes)
        layers = tuple((arrays[f"layers.{i}.kernel"], arrays[f"layers.{i}.bias"]) for i in range(count))
        head = Head(arrays["mean"], arrays["scale"], layers, manifest.setup, manifest.pair)
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        raise InputError(f"{folder} is no judge that can be read, train or copy it again: {error}") from error
    if pair is not None:
        head.check_pair(pair)
    return head


def read_manifest(folder: str | Path) -> JudgeManifest:
    """What `judge.json` says. Raises `InputError` if there is none, or it was changed."""
    path = _resolved(folder) / _MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} has no {_MANIFEST}: give a folder that kljudge train-judge wrote")
    content = read(path, dict[str, Any], _ADVICE)
    manifest = convert(content, JudgeManifest, str(path), _ADVICE)
    if manifest.manifest_sha256 != _own_digest(content) or manifest.setup not in SETUPS:
        raise InputError(f"{path} is not the file that was saved: {_ADVICE}")
    return manifest


def _resolved(folder: str | Path) -> Path:
    return (shipped_folder() / "judge" if folder == EMBEDDED else Path(folder)).expanduser().absolute()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _own_digest(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

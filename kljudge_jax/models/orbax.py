"""Our own folder of a model: configuration, tokenizer and an Orbax checkpoint of the parameters.

`model.json` says what the model is, with a checksum of every parameter; `weights/` is the checkpoint, a flat dictionary
by dotted name; the tokenizer's files lie beside them as Transformers writes them.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.tokenizer import has_tokenizer, load_tokenizer
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.records import Record, named, read, write
from kljudge_jax.results_folder import results_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MANIFEST = "model.json"
_ADVICE = "convert or copy the model again, or upgrade kljudge_jax"
_CHUNK_BYTES = 1 << 26

# Whether a write of Orbax has failed in this process.
_failed = False


class ModelManifest(Record, frozen=True, kw_only=True):
    """What a model is (`model.json`).

    Attributes:
      config: its shape and options.
      eos: every id that ends a text.
      crc32: a checksum of every parameter, by name.
    """

    format: Literal["kljudge_jax.model"] = "kljudge_jax.model"
    version: Literal[2] = 2
    config: TransformerConfig
    eos: tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**31)], ...] = ()
    crc32: dict[str, Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """For what Orbax writes there: an error of the system is an `OSError` with the folder's name, and said once.

    Orbax raises what its threads and tasks raise, and that is logged as well, and so are writes that end after it.
    Tasks that failed are logged when they are collected, at any time later: from a first error on they stay silent.
    """
    global _failed
    logs = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for log in logs:
        log.addFilter(_is_news)
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: None if _is_late(found.exc_value) else before(found)
    try:
        with named(folder):
            yield
    except BaseException:
        _failed = True
        raise
    finally:
        sys.unraisablehook = before
        if not _failed:
            for log in logs:
                log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return not any(part in said for part in ("_SignalingThread", "orbax/checkpoint", "[os_error_code="))


def _is_late(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def is_ours(folder: str | Path) -> bool:
    return (Path(folder) / _MANIFEST).is_file()


def save(
    folder: str | Path,
    model: Transformer,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eos: tuple[int, ...] = (),
) -> None:
    """Writes a model to a new folder, each parameter in its own dtype.

    Args:
      eos: every id that ends a text.

    Raises:
      InputError: the folder exists and is not empty, or cannot be made; or matrices are integers.
      OSError: it cannot be written, as on a full disk.
    """
    folder = check_destination(folder)
    if model.storage.bits is not None:
        raise InputError(f"{model.storage} weights cannot be saved: save the model that they were rounded from")
    if model.storage.head_rows is not None:
        raise InputError("a head that is cut to some tokens cannot be saved: save the whole model, and cut it again")
    with saving(results_folder(folder)):
        with ocp.PyTreeCheckpointer() as checkpointer:
            # In chunks, so that a host of several reads little more than its own part of a tensor.
            chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), parameters(model))
            checkpointer.save(folder / "weights", parameters(model), save_args=chunked)
        # Orbax notes the path it wrote to; a folder that will be handed on keeps it to itself.
        (folder / "weights" / "commit_success.txt").write_text("Checkpoint commit was successful.\n")
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        manifest = ModelManifest(
            config=model.config,
            eos=tuple(int(i) for i in eos),
            crc32={name: _checksum(np.asarray(leaf)) for name, leaf in parameters(model).items()},
        )
        # Last, so that a folder that was cut short is not taken for a model.
        write(folder / _MANIFEST, manifest)


def check_destination(folder: str | Path) -> Path:
    """The absolute path of a folder that `save` may write to; InputError if it holds something."""
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: name a new one")
    return folder


class OrbaxFolder:
    """A folder that `save` wrote. A `TensorSource` with a tokenizer.

    Raises:
      InputError: the folder is none of ours, of a later version, or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        self.where = str(path)
        if not is_ours(self.path):
            raise InputError(f"{self.where} has no {_MANIFEST}: give a folder that kljudge convert wrote")
        manifest = read(self.path / _MANIFEST, ModelManifest, _ADVICE, exact=True)
        self.config, self.eos, self._checksums = manifest.config, manifest.eos, manifest.crc32
        self._checkpointer = ocp.PyTreeCheckpointer()
        try:
            self._metadata = dict(self._checkpointer.metadata(self.path / "weights").item_metadata.tree)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
            raise InputError(f"{self.path / 'weights'} is no Orbax checkpoint that can be read: {error}") from error
        lost = sorted(self._metadata.keys() ^ self._checksums.keys())
        if lost:
            raise InputError(f"{self.path / _MANIFEST} and weights do not both have {lost[0]}: {_ADVICE}")
        layers = {name.split(".")[1] for name in self._metadata if name.startswith("layers.")}
        if len(layers) != self.config.num_layers:
            raise InputError(
                f"{self.path / _MANIFEST}, field config.num_layers: is {self.config.num_layers} where the weights have "
                f"{len(layers)} layers: {_ADVICE}"
            )
        self._waiting: dict[str, np.ndarray] = {}
        self._cut: dict[str, np.ndarray] = {}  # the tensor that parts are cut from, if there is one

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(leaf.shape) for name, leaf in self._metadata.items()}

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        if part is not None:
            return self._read_part(name, part)
        # A restore has a fixed price of some 20 ms, so a layer is read at once, and handed out once.
        if name not in self._waiting:
            self._waiting = self._restore([other for other in self._metadata if _group(other) == _group(name)])
        return self._checked(name, self._waiting.pop(name))

    def _read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        if jax.process_count() == 1:
            # All parts will be wanted here, so the tensor is read whole, and its checksum can be looked at.
            # Alone: a mesh is for what is too large to have a layer of it whole beside its shards.
            if name not in self._cut:
                self._cut.clear()
                self._cut[name] = self._checked(name, self._restore([name])[name])
            return self._cut[name][part]
        path = self.path / "weights"
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{path}/", "path": f"{name}/"}}
        try:
            return ts.open(spec, read=True).result()[part].read().result()
        except Exception as error:
            raise InputError(f"{path} is damaged, convert or copy the model again: {error}") from error

    def _checked(self, name: str, array: np.ndarray) -> np.ndarray:
        # Orbax does not notice a bit that flipped on disk.
        if _checksum(array) != self._checksums.get(name):
            raise InputError(f"{name} in {self.path / 'weights'} is damaged: convert or copy the model again")
        return array

    def _restore(self, names: list[str]) -> dict[str, np.ndarray]:
        arguments = ocp.args.PyTreeRestore(
            item={name: self._metadata[name] for name in names},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
            partial_restore=True,
        )
        try:
            return dict(self._checkpointer.restore(self.path / "weights", args=arguments))
        except Exception as error:
            raise InputError(f"{self.path / 'weights'} is damaged, convert or copy the model again: {error}") from error

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The folder's tokenizer; None if it was saved without."""
        return load_tokenizer(self.path) if has_tokenizer(self.path) else None


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _group(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else name

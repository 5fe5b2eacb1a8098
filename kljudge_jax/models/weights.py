"""Weights from a file into a transformer, one tensor at a time."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.sharding import NamedSharding

from kljudge_jax.errors import InputError
from kljudge_jax.kernels.product import fastest_dtype, tiled_where_native
from kljudge_jax.kernels.quantize import INT8_PER_OUTPUT, QuantizedTensor, Scheme, outputs_axis, quantize, to_groups
from kljudge_jax.models import names
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.families import config_from_hf
from kljudge_jax.models.json_file import DOWNLOAD_AGAIN, read_foreign
from kljudge_jax.models.linear import FILE, Storage, is_matrix, quantized_parts
from kljudge_jax.models.tokenizer import eos_ids, has_tokenizer, load_tokenizer
from kljudge_jax.models.transformer import Transformer, abstract, assemble, parameters
from kljudge_jax.parallel.layout import Layout
from kljudge_jax.records import Record, convert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_ROUNDED_AT_ONCE = 1 << 24  # values of a matrix

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class TensorSource(Protocol):
    """A checkpoint on disk, whatever its format, seen as our parameters.

    Attributes:
      where: the folder or file, for messages.
      config: what the checkpoint says it is.
    """

    where: str
    config: TransformerConfig

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by our dotted name and in our layout; one that has none keeps the file's name."""
        ...

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        """One tensor in our layout, or the part of it that one slice an axis cuts out, read alone where the format
        lets it: float32, float16 or bfloat16."""
        ...


@runtime_checkable
class QuantizedSource(Protocol):
    """A checkpoint with quantized matrices, which `Storage.bits` "file" keeps."""

    def schemes(self) -> dict[str, Scheme]:
        """How those matrices are stored, by our dotted name."""
        ...

    def read_quantized(self, name: str, rows: slice) -> QuantizedTensor:
        """Some rows of one of them."""
        ...


def storage_of(
    source: TensorSource, dtype: Any, bits: int | str | None, layout: Layout | None, cache_bits: int | None = None
) -> Storage:
    """How the matrices of a checkpoint are to be kept. InputError if it has no quantized ones, and they are wanted."""
    if bits != FILE:
        return Storage(dtype, bits, layout, cache_bits=cache_bits)
    schemes = source.schemes() if isinstance(source, QuantizedSource) else {}
    if not schemes:
        raise InputError(
            f"{source.where} has no quantized matrix to keep, as a .gguf file in Q4_K_M or such has: ask for 8 or 4 "
            f"bits, which round it, in place of {FILE!r}, or for none"
        )
    storage = Storage(dtype, bits, layout, tuple(sorted(schemes.items())), cache_bits)
    _say_what_is_rounded_again(source.where, storage)
    return storage


def _say_what_is_rounded_again(where: str, storage: Storage) -> None:
    kept = [(theirs, storage.scheme(name, 0)) for name, theirs in storage.schemes]
    again = sorted({theirs.bits for theirs, ours in kept if ours == INT8_PER_OUTPUT})
    if again:
        _log.warning(
            "%s: matrices in blocks of %s bits are slow on a %s or cannot be read a row at a time, so %d of %d are "
            "rounded again, to 8 bits with a scale an output",
            where,
            ", ".join(map(str, again)),
            storage.place.platform.upper(),
            sum(ours == INT8_PER_OUTPUT for _, ours in kept),
            len(kept),
        )


def resolve_dtype(name: str) -> Any:
    """The dtype of that name; "auto" is the fastest on this device (`fastest_dtype`). InputError if there is none."""
    if name == "auto":
        name = fastest_dtype()
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is not supported: expected {', '.join(_DTYPES)} or auto")
    return _DTYPES[name]


def load(
    source: TensorSource,
    storage: Storage = Storage(),  # noqa: B008 - frozen
    vocab_size: int | None = None,
) -> Transformer:
    """Builds a transformer from a checkpoint.

    The host holds one tensor at a time beside the result; with a layout, one shard of one tensor, and reads the shards
    of its own devices alone. Matrices that are rounded are read some whole rows at a time. (A source may hold more: our
    own folders are read a layer at a time where all devices are this host's.)

    Args:
      storage: how matrices are kept, and where; norm scales stay float32.
      vocab_size: how many rows of the embedding and the head to keep; None keeps all.

    Raises:
      InputError: tensors are missing, unknown or of another shape (all of them are listed), or do not fit the dtype.
    """
    _compare(source)
    config = source.config
    if vocab_size is not None:
        if vocab_size > config.vocab_size:
            raise InputError(f"{source.where} has {config.vocab_size} tokens: {vocab_size} cannot be cut from them")
        config = dataclasses.replace(config, vocab_size=vocab_size)
    values = read_parameters(source, parameters(abstract(config, Storage(storage.dtype))), storage)
    return assemble(config, values, storage)


def read_parameters(
    source: TensorSource, wanted: Mapping[str, jax.Array | jax.ShapeDtypeStruct], storage: Storage
) -> dict[str, jax.Array]:
    """Parameters of a checkpoint, as `load` reads them: of the shapes and dtypes wanted, before they are quantized.

    What a file has more of is cut to its first rows.
    """
    values: dict[str, jax.Array] = {}
    for name, want in wanted.items():
        scheme = storage.scheme(name, want.shape[-1]) if is_matrix(name) else None
        if storage.layout is not None:
            if scheme is None:
                values[name] = _load_shards(source, name, want, storage.layout.parameter(name, want.shape))
            else:
                values |= _load_quantized_shards(source, name, want.shape, scheme, storage, storage.layout)
            continue
        if scheme is None:
            array = source.read(name)
            if array.shape != want.shape:
                array = array[tuple(slice(size) for size in want.shape)]
            values[name] = jax.device_put(_cast(array, want.dtype, name, source.where))
            del array  # else it would still be held while the next one is read
        else:
            rows = _read_quantized(source, name, slice(0, want.shape[0]), want.shape[1], scheme, storage)
            values |= quantized_parts(name, tiled_where_native(rows, storage.place))
    return values


def _read_quantized(
    source: TensorSource, name: str, rows: slice, width: int, scheme: Scheme, storage: Storage
) -> QuantizedTensor:
    """Some rows of a quantized matrix: the file's own, or rounded from what it has."""
    if storage.bits == FILE and scheme.group != 0:
        assert isinstance(source, QuantizedSource)
        found = source.read_quantized(name, rows)
        return found if scheme.group is None else to_groups(found, scheme)
    return quantize(jax.device_put(source.read(name, (rows, slice(0, width)))), scheme)


def _load_quantized_shards(
    source: TensorSource, name: str, shape: tuple[int, ...], scheme: Scheme, storage: Storage, layout: Layout
) -> dict[str, jax.Array]:
    """A quantized matrix with what belongs to it, of which the devices of this host get their parts.

    A row is rounded as a whole: whole rows are read, those of this host's devices alone, few at a time.
    """
    wide = jax.ShapeDtypeStruct(shape, jnp.float32)
    leaves = quantized_parts(name, jax.eval_shape(lambda x: quantize(x, scheme), wide))
    shardings = {leaf: layout.parameter(leaf, like.shape, scheme.order) for leaf, like in leaves.items()}
    axis = outputs_axis(scheme)
    wanting: list[tuple[str, jax.Device, tuple[int, int], tuple[slice, ...]]] = []
    for leaf, sharding in shardings.items():
        for device, index in sharding.addressable_devices_indices_map(leaves[leaf].shape).items():
            assert index is not None
            wanting.append((leaf, device, index[axis].indices(shape[0])[:2], index))
    rounded = {leaf: np.empty(like.shape, like.dtype) for leaf, like in leaves.items()}  # rows of others stay untouched
    for first, last in _pieces({bounds for _, _, bounds, _ in wanting}, max(1, _ROUNDED_AT_ONCE // shape[1])):
        part = _read_quantized(source, name, slice(first, last), shape[1], scheme, storage)
        for leaf, rows in quantized_parts(name, part).items():
            rounded[leaf][(slice(None),) * axis + (slice(first, last),)] = rows
    placed: dict[str, list[jax.Array]] = {leaf: [] for leaf in leaves}
    for leaf, device, _, index in wanting:
        placed[leaf].append(jax.device_put(np.array(rounded[leaf][index]), device))
    return {
        leaf: jax.make_array_from_single_device_arrays(leaves[leaf].shape, shardings[leaf], arrays)
        for leaf, arrays in placed.items()
    }


def _pieces(intervals: set[tuple[int, int]], longest: int) -> list[tuple[int, int]]:
    """What some intervals cover, once, in pieces of a length."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(intervals):
        first = max(first, found[-1][1]) if found else first
        found += [(start, min(start + longest, last)) for start in range(first, last, longest)]
    return found


def _load_shards(
    source: TensorSource, name: str, want: jax.Array | jax.ShapeDtypeStruct, sharding: NamedSharding
) -> jax.Array:
    """One parameter, of which the devices of this host get what `sharding` says, each part read once."""
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(want.shape).items():
        assert index is not None  # which it is for devices of other hosts alone
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, want.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    placed = []
    for bounds, devices in holders.items():
        part = source.read(name, tuple(slice(*ends) for ends in bounds))
        part = _cast(part, want.dtype, name, source.where)
        placed += [jax.device_put(part, device) for device in devices]
        del part
    return jax.make_array_from_single_device_arrays(want.shape, sharding, placed)


def _cast(array: np.ndarray, dtype: Any, name: str, where: str) -> np.ndarray:
    # JAX may adopt a host array as it is, and a view would keep the whole file alive.
    if array.dtype == dtype and array.base is None and array.flags.c_contiguous:
        return array
    with np.errstate(over="ignore"):
        cast = np.array(array, dtype, order="C")
    if dtype == jnp.float16 and array.dtype != np.float16 and not np.isfinite(cast).all():
        raise InputError(f"{name} of {where} does not fit float16: use bfloat16")
    return cast


def _compare(source: TensorSource) -> None:
    want = {name: leaf.shape for name, leaf in parameters(abstract(source.config)).items()}
    faults = faults_of(want, source.shapes())
    if faults:
        raise InputError(f"{source.where} does not fit its {source.config.family} configuration: {'; '.join(faults)}")


def faults_of(want: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unknown or of another shape among the tensors found."""
    return [
        *(f"{name} is missing" for name in want if name not in found),
        *(f"{name} is not known" for name in found if name not in want),
        *(
            f"{name} is {list(found[name])} instead of {list(shape)}"
            for name, shape in want.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ),
    ]


class ShardIndex(Record, frozen=True, kw_only=True):
    """Which file of a folder holds a tensor (`model.safetensors.index.json`)."""

    weight_map: dict[str, str]


class SafetensorsFolder:
    """A Hugging Face folder: config.json and model.safetensors, whole or in shards. A `TensorSource`.

    Raises:
      InputError: the folder has no safetensors (pickled weights are never opened), a shard is missing or broken, or
        the model is none that runs here.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.where = str(path)
        if not (self.path / "config.json").is_file():
            raise InputError(f"{self.where} has no config.json: give a model folder, a .gguf file or a hub id")
        self.options = read_foreign(self.path / "config.json")
        self.config = config_from_hf(self.options)
        self._files: dict[str, Any] = {}
        self._tensors: dict[str, tuple[str, str]] = {}  # our name -> file, its name there
        for theirs, file in self._listing().items():
            ours = self._our_name(theirs)
            if ours is None:
                continue
            if ours in self._tensors:
                raise InputError(f"{self.where} holds {ours} twice: as {self._tensors[ours][1]} and as {theirs}")
            self._tensors[ours] = (file, theirs)

    def _our_name(self, theirs: str) -> str | None:
        """See `names.our_name`."""
        return names.our_name(theirs, self.config.family, self.config.tied_head)

    def _listing(self) -> dict[str, str]:
        """Which file holds a tensor, by their name."""
        index, single = self.path / "model.safetensors.index.json", self.path / "model.safetensors"
        if index.is_file():
            shards = convert(read_foreign(index), ShardIndex, str(index), DOWNLOAD_AGAIN).weight_map
            if not all(Path(file).name == file for file in shards.values()):
                raise InputError(f"{index} has no weight_map of file names: download the folder again")
            present = {file: set(self._open(file).keys()) for file in sorted(set(shards.values()))}
            lost = [f"{name} ({file})" for name, file in shards.items() if name not in present[file]]
            if lost:
                raise InputError(f"{index} names tensors that their shards do not hold: {', '.join(lost)}")
            return shards
        if single.is_file():
            return dict.fromkeys(self._open(single.name).keys(), single.name)
        pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in self.path.glob(kind))
        if pickles:
            raise InputError(
                f"{self.where} has only pickled weights ({', '.join(pickles)}), which are never opened: "
                "convert them to safetensors first"
            )
        raise InputError(f"{self.where} has no model.safetensors: give a folder with safetensors weights")

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.path / file
            try:
                self._files[file] = safetensors.safe_open(str(path), framework="np")
            except FileNotFoundError as error:
                raise InputError(f"{path} is missing: download the folder again") from error
            except (safetensors.SafetensorError, OSError) as error:
                raise InputError(f"{path} is broken ({error}): download it again") from error
        return self._files[file]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            ours: tuple(self._open(file).get_slice(theirs).get_shape())
            for ours, (file, theirs) in self._tensors.items()
        }

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        file, theirs = self._tensors[name]
        tensor = self._open(file).get_slice(theirs)
        stored = tensor.get_dtype()
        if stored not in ("F32", "F16", "BF16"):
            raise InputError(f"{theirs} of {self.path / file} is stored as {stored}: expected F32, F16 or BF16")
        array = self._open(file).get_tensor(theirs) if part is None else tensor[part]
        return names.our_layout(name, array, self.config.family)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The folder's tokenizer; None if it came without."""
        return load_tokenizer(self.path) if has_tokenizer(self.path) else None

    @property
    def eos(self) -> tuple[int, ...]:
        """Every id that ends a text; the tokenizer's is left to the caller."""
        return eos_ids(self.path)

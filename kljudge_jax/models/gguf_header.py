"""The front of a GGUF file: its metadata and where each tensor lies. Nothing is read past it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` keeps an array object for every
string of the vocabulary, which takes 9 s and 500 MB for 150,000 tokens; this reader takes a fraction of a second, and
checks every length against the size of the file before it believes it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from kljudge_jax.errors import InputError

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_SIZE = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
      kind: how its numbers are stored.
      shape: in row-major order, the fastest axis last: the reverse of what the file writes.
      start, size: its bytes in the file.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Metadata by key, and tensors by the file's own names.

    A metadata value is a Python scalar or string, a list of strings, or a NumPy array; a float32 becomes the shortest
    decimal that rounds to it, so that an epsilon of 1e-6 is 1e-6.

    Raises:
      InputError: the file cannot be opened, is not GGUF, is damaged or shorter than its tensors need.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise InputError(f"{path} cannot be read as a GGUF file ({error}): check the path or get it again") from None
    if bytes(data[:4]) != b"GGUF":
        raise InputError(f"{path} is not a GGUF file: it does not start with the letters GGUF")
    try:
        metadata, tensors = _Parser(data.data).parse()
    except _UnusableError as error:
        raise InputError(f"{path} is a GGUF file that cannot be used: {error}") from None
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is a damaged GGUF file ({error}): get it again") from None
    for name, entry in tensors.items():
        if entry.start + entry.size > len(data):
            raise InputError(
                f"{path} is cut short: tensor {name} ends at byte {entry.start + entry.size} of a file of {len(data)}"
                " bytes; get it again"
            )
    return metadata, tensors


class _UnusableError(Exception):
    """A file that is whole but of a kind that is not read."""


class _Parser:
    """Reads little-endian values one after another; ValueError where the file contradicts itself."""

    def __init__(self, view: memoryview):
        self.view = view
        self.at = 4  # after the magic

    def parse(self) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
        version = self.scalar("<u4")
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:
                raise _UnusableError("it is big-endian; convert it with the script gguf_convert_endian")
            raise _UnusableError(f"its format is version {version}; convert the model again")
        tensor_count, key_count = self.count(24), self.count(13)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"metadata key {key!r} appears twice")
            metadata[key] = self.value(self.value_type())
        entries = [self.entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"an alignment of {alignment!r} is not a power of two")
        data_start = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        for name, entry in entries:
            if name in tensors:
                raise ValueError(f"tensor {name!r} appears twice")
            tensors[name] = dataclasses.replace(entry, start=entry.start + data_start)
        return metadata, tensors

    def take(self, size: int) -> memoryview:
        if size > len(self.view) - self.at:
            raise ValueError(f"{size} bytes expected at byte {self.at} of {len(self.view)}")
        self.at += size
        return self.view[self.at - size : self.at]

    def scalar(self, dtype: str) -> Any:
        kind = np.dtype(dtype)
        value = np.frombuffer(self.take(kind.itemsize), kind)[0]
        return float(str(value)) if kind == np.float32 else value.item()

    def count(self, smallest: int) -> int:
        """How many items follow, of at least `smallest` bytes each."""
        (number,) = _SIZE.unpack(self.take(8))
        if number * smallest > len(self.view) - self.at:
            raise ValueError(f"{number} items announced at byte {self.at - 8} of {len(self.view)}")
        return number

    def string(self) -> str:
        return str(self.take(self.count(1)), "utf-8")

    def value_type(self) -> GGUFValueType:
        return GGUFValueType(self.scalar("<u4"))

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.scalar(_SCALARS[kind])
        item = self.value_type()
        if item == GGUFValueType.STRING:
            return [self.string() for _ in range(self.count(8))]
        if item == GGUFValueType.ARRAY:
            raise _UnusableError("its metadata nests arrays, which no known model does: convert it again")
        dtype = np.dtype(_SCALARS[item])
        return np.frombuffer(self.take(self.count(dtype.itemsize) * dtype.itemsize), dtype).copy()

    def entry(self) -> tuple[str, TensorEntry]:
        """A tensor's name and place, its start counted from the first tensor's."""
        name = self.string()
        dimensions = self.scalar("<u4")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.scalar("<u8") for _ in range(dimensions))[::-1]
        number = self.scalar("<u4")
        if number not in GGMLQuantizationType._value2member_map_:
            raise _UnusableError(
                f"tensor {name} has type number {number}, which is not known here: get a file of another type"
            )
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
        if 0 in shape:
            raise ValueError(f"tensor {name!r} has shape {shape}")
        if shape[-1] % block:
            raise ValueError(f"rows of {shape[-1]} in tensor {name!r} are not whole blocks of {kind.name}")
        return name, TensorEntry(kind, shape, self.scalar("<u8"), math.prod(shape) // block * size)

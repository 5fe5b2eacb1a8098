"""Records in files of JSON: one reader that names file, line and field, and one writer that leaves whole files.

A format is a type: a `Record`, or any dataclass of plain values. A field whose type is one `Literal` says which format
and which version of it a file is; a file of 0.1.0 that lacks it is of the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import re
import typing
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from kljudge_jax.errors import InputError

T = TypeVar("T")

# How many there are of something. No machine counts further, and an array holds it.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

# "[os_error_code='28']" of TensorStore, "(os error 28)" of Rust.
_ERROR_OF_SYSTEM = re.compile(r"os[_ ]error(?:_code=')?\s*(\d+)")

# What a person can do about a damaged file that nothing more is known of.
_ADVICE = "give an undamaged copy"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Figures with names and types. A subclass repeats `frozen=True, kw_only=True`, which hold for its own fields."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain dicts, lists, strings and numbers, as a file of JSON holds them."""
        return plain(self)


def plain(value: Any) -> Any:
    """A record, or anything made of records, dataclasses and arrays, as plain dicts, lists, strings and numbers."""
    return json.loads(_dumps(value))  # tuples are lists in a file


def read(path: str | os.PathLike, kind: type[T], advice: str = _ADVICE, *, exact: bool = False) -> T:
    """The record in a file of JSON.

    Args:
      path: of the file; one that ends in `.gz` is unzipped.
      kind: what it holds.
      advice: what to do about a file that cannot be used; ends the message.
      exact: a field that the format does not have is refused: a misspelt one would else be taken for left out.

    Raises:
      InputError: the file cannot be read, is no JSON, or holds something else; one line that names file and field.
    """
    return convert(_parse(read_text(path, advice), str(path), advice), kind, str(path), advice, exact=exact)


def read_lines(path: str | os.PathLike, kind: type[T], advice: str = _ADVICE) -> list[T]:
    """The records of a file of JSON lines, plain or `.gz`; blank lines are none. Raises `InputError` as `read` does."""
    return [
        _record(line, kind, f"{path}, line {number}", advice)
        for number, line in enumerate(read_text(path, advice).split("\n"), 1)
        if line.strip()
    ]


def read_log(path: str | os.PathLike, kind: type[T], advice: str = _ADVICE, *, mend: bool = False) -> list[T]:
    """The records of a file that `LineWriter` appends to; none if there is no such file.

    A last line that a kill cut short is left out; with `mend`, out of the file too.

    Raises:
      InputError: as `read` does; the message names the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    data = _read_bytes(path, advice)
    whole = data[: data.rfind(b"\n") + 1]
    if mend and len(whole) < len(data):
        with named(path):
            os.truncate(path, len(whole))
    return [
        _record(_decode(line, f"{path}, line {number}", advice), kind, f"{path}, line {number}", advice)
        for number, line in enumerate(whole.split(b"\n")[:-1], 1)
    ]


def read_text(path: str | os.PathLike, advice: str = _ADVICE) -> str:
    """A file of UTF-8 text, unzipped if its name ends in `.gz`. Raises `InputError` if it cannot be read."""
    return _decode(_read_bytes(path, advice), str(path), advice)


def convert(content: Any, kind: type[T], source: str, advice: str = _ADVICE, *, exact: bool = False) -> T:
    """Plain content as a record. Raises `InputError` that names the source and the field."""
    _check_version(content, kind, source, advice)
    try:
        found = msgspec.convert(content, kind, strict=True, str_keys=True)
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        what, at, where = str(error).partition(" - at `$")
        where = where.rstrip("`").lstrip(".")
        said = " ".join(what.replace("`", "").split())
        field = f", field {where}" if at and where else ""
        raise InputError(f"{source}{field}: {said[:1].lower()}{said[1:]}: {advice}") from None
    if exact and (unknown := _unknown(content, plain(found))):
        raise InputError(f"{source}, field {unknown[:60]}: is no field of this format: {advice}")
    return found


def differing(one: Any, other: Any) -> str:
    """The names of the fields, with commas, in which two records of a kind differ; "" if they are equal."""
    ours, theirs = plain(one), plain(other)
    return ", ".join(name for name in ours if ours[name] != theirs[name])


def write(path: str | Path, record: Any) -> None:
    """Writes a record as JSON; a kill leaves all of it or what was there before.

    Raises:
      OSError: it cannot be written; names the file.
    """
    write_text(path, _dumps(record, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text beside the file and puts it in its place. Raises `OSError` as `write` does."""
    path = Path(path)
    beside = path.with_name(path.name + ".partial")
    with named(path):
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


class LineWriter:
    """Appends records to a file of JSON lines, each as a whole or not at all. A context manager.

    A process that is killed loses nothing that `append` was given; a machine that stops, nothing before `sync`.

    Raises:
      OSError: the file cannot be written; names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with named(self.path):
            self._file = self.path.open("ab", buffering=0)

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, *records: Any) -> None:
        """Writes a line each."""
        data = "".join(_dumps(record) + "\n" for record in records).encode()
        with named(self.path):
            before = self._file.seek(0, os.SEEK_END)
            try:
                while data:  # a disk that fills up takes a part, and refuses the next
                    data = data[self._file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(before)
                raise

    def sync(self) -> None:
        """Down to the disk."""
        with named(self.path):
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def named(path: Path) -> Iterator[Path]:
    """Puts the file's name to an error that lacks it, as that of a full disk does.

    TensorStore (under Orbax) and safetensors put a system's error into the text of one of theirs: it is made an
    `OSError` again.
    """
    try:
        yield path
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    except Exception as error:
        found = _ERROR_OF_SYSTEM.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None


def schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a format (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}


def _record(line: str, kind: type[T], source: str, advice: str) -> T:
    return convert(_parse(line, source, advice), kind, source, advice)


def _parse(text: str, source: str, advice: str) -> Any:
    try:
        content = json.loads(text, parse_constant=_refuse)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half a pair can neither be printed nor written
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        at = f"{source}, line {error.lineno}" if error.lineno > 1 else source
        said = f"is no JSON ({error.msg[:1].lower()}{error.msg[1:]} at character {error.colno})"
        raise InputError(f"{at}: {said}: {advice}") from None
    except RecursionError:
        raise InputError(f"{source}: is nested too deep: {advice}") from None
    except UnicodeEncodeError:
        raise InputError(f"{source}: holds half of a surrogate pair, which is no character: {advice}") from None
    except _NoNumber as error:
        raise InputError(f"{source}: holds {error}, which is no number of JSON: {advice}") from None
    except ValueError:  # Python reads no number of more than some thousand digits
        raise InputError(f"{source}: holds a number of too many digits: {advice}") from None
    return content


class _NoNumber(ValueError):
    """NaN or an infinity, which Python reads and JSON has not."""


def _refuse(name: str) -> Any:
    raise _NoNumber(name)


def _check_version(content: Any, kind: Any, source: str, advice: str) -> None:
    if not isinstance(content, dict) or not isinstance(kind, type):
        return
    if not (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)):
        return
    for name, known in _versions(kind).items():
        if content.get(name, known) != known:
            given = json.dumps(content[name])
            said = f"is of {name} {given if len(given) <= 40 else f'{given[:40]}...'}"
            raise InputError(f"{source} {said}, and this version reads {json.dumps(known)}: {advice}")


@functools.cache
def _versions(kind: type) -> dict[str, Any]:
    """The fields of a format that say which version of it a file is, and the one that is read."""
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if typing.get_origin(hint) is Literal}
    return {name: known[0] for name, hint in hints.items() if len(known := typing.get_args(hint)) == 1}


def _unknown(content: Any, known: Any) -> str:
    """The path of the first field that is not among those known; "" if there is none."""
    if isinstance(content, dict) and isinstance(known, dict):
        for name, value in content.items():
            inner = _unknown(value, known[name]) if name in known else ""
            if name not in known or inner:
                return f"{name}.{inner}".rstrip(".")
    if isinstance(content, list) and isinstance(known, list):
        for i, (one, other) in enumerate(zip(content, known, strict=False)):
            if inner := _unknown(one, other):
                return f"[{i}].{inner}"
    return ""


def _read_bytes(path: str | os.PathLike, advice: str) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if str(path).endswith(".gz") else data
    except (OSError, EOFError, zlib.error, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read ({said[:1].lower()}{said[1:]}): {advice}") from None


def _decode(data: bytes, source: str, advice: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: is no UTF-8 text (byte {error.start}): {advice}") from None


def _dumps(value: Any, indent: int | None = None) -> str:
    content = msgspec.to_builtins(value, str_keys=True, enc_hook=_plain_array)
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity: null stands in their place
        return json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), indent=indent)


def _plain_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain value")

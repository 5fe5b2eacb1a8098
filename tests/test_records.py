"""The one reader names what it cannot use, and the one writer leaves whole files and whole lines."""

import dataclasses
import gzip
import json
import os
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest

from kljudge_jax import records
from kljudge_jax.errors import InputError
from kljudge_jax.records import LineWriter, Record, read, read_lines, read_log, write


class Figures(Record, frozen=True, kw_only=True):
    n: int
    share: float = 0.5
    ends: tuple[float, float] | None = None
    schema: Literal[2] = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    figures: Figures
    by_name: Mapping[str, tuple[int, ...]]


WHOLE = Plan(Figures(n=3, ends=(0.25, 1.0)), {"one": (1, 2), "none": ()})

DAMAGE = {
    '{"n": "3"}': r"field n: expected int, got str",
    '{"n": true}': r"field n: expected int, got bool",
    '{"share": 1}': r"missing required field n",
    '{"n": 1, "ends": [1]}': r"field ends: expected array of length 2, got 1",
    '{"n": 1, "schema": 3}': r"is of schema 3, and this version reads 2",
    '{"n": 1, "schema": [2]}': r"is of schema \[2\], and this version reads 2",
    '{\n"n": 1,}': r"line 2: is no JSON \(.* at character \d+\)",
    "[1]": r"expected object, got array",
    "": r"is no JSON",
    "[" * 200_000: r"nested too deep",
    '{"n": ' + "7" * 5_000 + "}": r"too many digits",
    '{"n": 1, "share": 1' + "0" * 400 + "}": r"field share: number out of range",
    '{"n": 1, "share": NaN}': r"holds NaN, which is no number of JSON",
    '{"n": 1, "share": -Infinity}': r"holds -Infinity, which is no number of JSON",
    '{"n": 1, "x": "\\ud800"}': r"half of a surrogate pair",
    b'{"n": \xff}': r"no UTF-8 text \(byte 6\)",
    '{"n": 1}'.encode("utf-16"): r"no UTF-8 text",
}


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("of_lines", [False, True])
def test_damage_is_named_in_one_line(content, of_lines, tmp_path):
    path = tmp_path / "figures.json"
    data = content if isinstance(content, bytes) else content.encode()
    if of_lines:
        data = b'{"n": 1}\n' + data.replace(b"\n", b" ")
        if not content:
            data += b"{"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        (read_lines if of_lines else read)(path, Figures, "measure again")
    said = str(error.value)
    assert said.startswith(str(path)) and said.endswith(": measure again") and "\n" not in said and len(said) < 300
    expected = DAMAGE[content].replace("line 2: ", "") if of_lines else DAMAGE[content]
    with pytest.raises(InputError, match=expected.replace(r"\(byte 6\)", "")):
        (read_lines if of_lines else read)(path, Figures)
    assert not of_lines or "UTF-8" in said or "line 2" in said


@pytest.mark.parametrize("damaged", [b"", b"{}", "cut", "flipped"])
def test_a_damaged_archive_is_named(damaged, tmp_path):
    good = bytearray(gzip.compress(b'{"n": 1}\n' * 50))
    if damaged == "cut":
        damaged = good[:-12]
    elif damaged == "flipped":
        good[15] ^= 0xFF
        damaged = good
    (tmp_path / "f.jsonl.gz").write_bytes(damaged)
    if damaged == b"":  # gzip calls nothing nothing
        assert read_lines(tmp_path / "f.jsonl.gz", Figures) == []
        return
    with pytest.raises(InputError, match=r"f\.jsonl\.gz.* cannot be read"):
        read_lines(tmp_path / "f.jsonl.gz", Figures)


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            read(path, Figures)


def test_a_file_is_read_as_it_was_written(tmp_path):
    write(tmp_path / "plan.json", WHOLE)
    assert read(tmp_path / "plan.json", Plan) == WHOLE
    assert json.loads((tmp_path / "plan.json").read_text()) == records.plain(WHOLE)
    assert WHOLE.figures.to_dict() == {"n": 3, "share": 0.5, "ends": [0.25, 1.0], "schema": 2}


def test_a_field_within_is_named_by_its_path(tmp_path):
    (tmp_path / "plan.json").write_text('{"figures": {"n": null}, "by_name": {}}')
    with pytest.raises(InputError, match=r"plan\.json, field figures\.n: expected int, got null"):
        read(tmp_path / "plan.json", Plan)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write(tmp_path / "found.json", {"n": np.int32(1), "all": np.arange(2)})
    with pytest.raises(TypeError):
        write(tmp_path / "found.json", {"n": object()})
    with pytest.raises(UnicodeEncodeError):
        records.write_text(tmp_path / "found.json", "\ud800")
    assert json.loads((tmp_path / "found.json").read_text()) == {"n": 1, "all": [0, 1]}
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    with LineWriter(path) as log:
        log.append(Figures(n=1))
        real = log._file

        class Full:
            def __getattr__(self, name):
                return getattr(real, name)

            def write(self, data):
                if len(data) < 20:
                    raise OSError(28, "No space left on device")
                return real.write(data[: len(data) - 10])

        monkeypatch.setattr(log, "_file", Full())
        with pytest.raises(OSError, match=r"No space left on device: .*log\.jsonl"):
            log.append(Figures(n=2))
        monkeypatch.undo()
        log.append(Figures(n=3))
        log.sync()
    assert [one.n for one in read_log(path, Figures)] == [1, 3]


def test_a_line_that_a_kill_cut_short_is_left_out_and_mended_when_asked(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path, Figures) == []
    with LineWriter(path) as log:
        log.append(Figures(n=1), Figures(n=2))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": ')
    assert [one.n for one in read_log(path, Figures)] == [1, 2] and path.read_bytes() != whole
    assert [one.n for one in read_log(path, Figures, mend=True)] == [1, 2] and path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"n": 2', b'"n": []') + b'{"n": ')
    with pytest.raises(InputError, match=r"log\.jsonl, line 2, field n: expected int, got array"):
        read_log(path, Figures)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_write_to_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="/dev/full"), LineWriter("/dev/full") as log:
        log.append(Figures(n=1))


def test_a_schema_says_what_a_file_may_hold():
    properties = records.schema(Figures)["$defs"]["Figures"]["properties"]
    assert properties["n"] == {"type": "integer"} and properties["schema"]["enum"] == [2]


def test_what_is_no_number_is_written_as_null(tmp_path):
    write(tmp_path / "figures.json", {"share": [float("nan"), float("-inf"), 0.5], "n": 1})
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"share": [None, None, 0.5], "n": 1}

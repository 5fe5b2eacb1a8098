"""The dataset that judges are trained on: one row a judged token, in columns that are only ever appended to.

A folder holds:

- `dataset.json`: format, version, the pair, how the rows came about, and every column's type and shape;
- `columns/NAME.bin`: a column's values, little-endian, row after row, no header: `numpy.fromfile` reads it;
- `questions.jsonl`: one line a finished question, written after its rows: which rows are its own, and how it ended.

Rows that no line of `questions.jsonl` claims were cut off by a kill; opening the folder to write drops them. So a
question is there as a whole or not at all. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.generation.display import scrolling_html
from kljudge_jax.parallel import hosts
from kljudge_jax.records import Count, LineWriter, Record, named, plain, read, read_log, write
from kljudge_jax.results_folder import FolderLock, results_folder
from kljudge_jax.verification.features import PRIMITIVES, SETUPS, judge_features
from kljudge_jax.verification.head import PairIdentity

# How many tokens' logit gaps a row keeps, for `judges.correspondence`.
GAP_TOKENS = 1024

_ADVICE = "mine into a new folder"


def columns_of(pair: PairIdentity, gap_tokens: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every column, by name.

    question: index of the question. position: of the judged token, 0 for the first of the answer.
    important: the label, 1 or 0. score: what the label was decided on, larger for important; by label source, 0 or 1
    (semi-greedy), a log-likelihood difference in nats (SelfJudge) or a share of rollouts (Pivot-aware).
    rolled_out: 1 where an answer was written to decide it. target_token, draft_token: the target's choice, and the
    judged token. primitives: `verification.features.PRIMITIVES`. second_order_kl: nats. target_hidden, draft_hidden:
    final-norm states after the judged token. gap: target's less draft's raw logits that predict the judged token, at
    the ids `gap_ids`; next_gap: those that predict the token after it.
    """
    return {
        "question": ("<i4", ()),
        "position": ("<i4", ()),
        "important": ("|i1", ()),
        "score": ("<f4", ()),
        "rolled_out": ("|i1", ()),
        "target_token": ("<i4", ()),
        "draft_token": ("<i4", ()),
        "primitives": ("<f4", (len(PRIMITIVES),)),
        "second_order_kl": ("<f4", ()),
        "target_hidden": ("<f4", (pair.target_hidden_size,)),
        "draft_hidden": ("<f4", (pair.draft_hidden_size,)),
        "gap": ("<f4", (gap_tokens,)),
        "next_gap": ("<f4", (gap_tokens,)),
    }


def gap_ids(vocab_size: int, most: int) -> np.ndarray:
    """The token ids whose logit gaps a dataset keeps: all, or `most` of them spread evenly."""
    return np.linspace(0, vocab_size - 1, min(most, vocab_size)).astype(np.int32)


class DatasetHead(Record, frozen=True, kw_only=True):
    """What a dataset is of (`dataset.json`).

    Attributes:
      pair: that it was made with.
      origin: how its rows came about.
      columns: type and shape of each, as `columns_of` gives them.

    Raises:
      ValueError: the columns are not those of the pair.
    """

    format: Literal["kljudge_jax.judge_dataset"] = "kljudge_jax.judge_dataset"
    version: Literal[1] = 1
    pair: PairIdentity
    origin: dict[str, Any]
    columns: dict[str, tuple[str, tuple[Count, ...]]]

    def __post_init__(self) -> None:
        gaps = self.columns.get("gap", ("", ()))[1]
        if len(gaps) != 1 or self.columns != columns_of(self.pair, gaps[0]):
            raise ValueError("columns are not those of the pair")


class QuestionRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A finished question: a line of `questions.jsonl`.

    Attributes:
      question: its index. problem: its id, where it is one of a task.
      status: how it ended. important: how many of its rows are. rollouts: answers written to decide them.
      answer: the target's, where it was kept.
      asked: a digest of what was asked; "" where nothing was noted.
      first_row, rows: which rows are its own.
    """

    question: Count
    problem: str = ""
    status: str = ""
    important: Count = 0
    rollouts: Count = 0
    answer: str = ""
    asked: str = ""
    first_row: Count
    rows: Count


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset in memory, or mapped into it; rows in the order of their questions.

    Attributes:
      pair: the pair that it was made with.
      origin: how the rows came about: task, options, label source.
      questions: a record for each finished question, in order.
      columns: n rows each; see `columns_of`.
    """

    pair: PairIdentity
    origin: Mapping[str, Any]
    questions: Sequence[QuestionRecord]
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["question"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def _repr_html_(self) -> str:
        share = self["important"].mean() if len(self) else 0.0
        figures = {"mismatches": str(len(self)), "important": f"{share:.1%}", "questions": str(len(self.questions))}
        for name, value in self.origin.items():
            if isinstance(value, dict):
                figures |= {f"{name}, {part}": str(it) for part, it in value.items()}
            elif not isinstance(value, list):
                figures[name] = str(value)
        return scrolling_html([["", ""], *map(list, figures.items())])

    def primitive(self, name: str) -> np.ndarray:
        """One of `PRIMITIVES`, f32 `[n]`."""
        return self.columns["primitives"][:, PRIMITIVES.index(name)]

    def features(self, setup: str) -> np.ndarray:
        """What a head of that set-up reads, f32 `[n, F]`. Raises `InputError` for an unknown set-up."""
        if setup not in SETUPS:
            raise InputError(f"choose one of the set-ups {', '.join(SETUPS)}, not {setup!r}")
        return np.asarray(judge_features(setup, *(self[c] for c in ("target_hidden", "draft_hidden", "primitives"))))

    def relabelled(self, threshold: float) -> Dataset:
        """The same rows, important where the score is above `threshold`."""
        important = (self["score"] > threshold).astype(np.int8)
        return dataclasses.replace(self, columns={**self.columns, "important": important})


def read_dataset(folder: str | Path) -> Dataset:
    """Reads a dataset, also one that is still being written.

    Raises:
      InputError: the folder holds none, one of another version, or less than it claims.
    """
    folder = Path(folder)
    head = _read_head(folder)
    questions = sorted(_committed(folder), key=lambda record: record.question)
    smallest = min(_row_bytes(*column) for column in head.columns.values() if _row_bytes(*column))
    held = max((path.stat().st_size for path in (folder / "columns").glob("*.bin")), default=0) // smallest
    for record in questions:  # before so many row numbers are made
        if record.first_row + record.rows > held:
            raise InputError(
                f"{folder / 'questions.jsonl'}: question {record.question} has rows that no column holds: {_ADVICE}"
            )
    rows = np.concatenate([np.arange(r.first_row, r.first_row + r.rows) for r in questions] or [np.arange(0)]).astype(
        np.int64
    )
    columns = {}
    for name, (dtype, shape) in head.columns.items():
        path = folder / "columns" / f"{name}.bin"
        size = _row_bytes(dtype, shape)
        count = path.stat().st_size // size if path.is_file() and size else 0
        if size and len(rows) and rows.max() >= count:
            raise InputError(f"{path} is shorter than {folder / 'questions.jsonl'} says: mine into a new folder")
        values = np.memmap(path, dtype, "r", shape=(count, *shape)) if count else np.zeros((len(rows), *shape), dtype)
        ordered = np.array_equal(rows, np.arange(len(rows)))
        columns[name] = values[: len(rows)] if ordered or not count else values[rows]
    return Dataset(head.pair, head.origin, questions, columns)


class DatasetWriter:
    """Appends finished questions to a dataset; only one may be open on a folder. A context manager.

    Args:
      folder: a new one, or one that a writer with the same arguments has begun.
      pair: what the rows are of.
      origin: how they come about; plain JSON.
      gap_tokens: how many logit gaps a row keeps.

    Raises:
      InputError: the folder holds something else, or another writer is at work.
    """

    def __init__(self, folder: str | Path, pair: PairIdentity, origin: Mapping[str, Any], gap_tokens: int):
        self.folder = results_folder(folder)
        self._schema = columns_of(pair, gap_tokens)
        self._asked: list[str] = []
        self._lock: FolderLock | None = None
        results_folder(self.folder / "columns")
        head = DatasetHead(pair=pair, origin=plain(dict(origin)), columns=self._schema)
        self._lock = FolderLock(self.folder)
        hosts.share(self.folder, "dataset.json", "questions.jsonl")
        self._claim(head)
        self.records = _committed(self.folder, mend=True)
        self._rows = max((record.first_row + record.rows for record in self.records), default=0)
        for name in self._schema:
            self._append(name, b"")
        with LineWriter(self.folder / "questions.jsonl"):  # it is there from the first on
            pass

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def finished(self) -> set[int]:
        """The questions that are done."""
        return {record.question for record in self.records}

    def expect(self, questions: Sequence[Any]) -> None:
        """Says what each question asks, as plain data that prints alike every time; records keep a digest of it.

        Raises:
          InputError: a question that is finished asked something else.
        """
        self._asked = [hashlib.sha256(repr(question).encode()).hexdigest()[:16] for question in questions]
        for record in self.records:
            at = record.question
            if at < len(self._asked) and (record.asked or self._asked[at]) != self._asked[at]:
                raise InputError(
                    f"{self.folder} holds answers to other questions than these (question {at} is another): name a "
                    "new folder"
                )

    def append(self, questions: Iterable[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> None:
        """Adds questions, each a record with at least "question", and its rows: a value for every column but that."""
        records: list[QuestionRecord] = []
        added: list[dict[str, Any]] = []
        for record, rows in questions:
            first = self._rows + len(added)
            asked = {"asked": self._asked[record["question"]]} if self._asked else {}
            records.append(QuestionRecord(**{**record, **asked, "first_row": first, "rows": len(rows)}))
            added += [{**row, "question": record["question"]} for row in rows]
        for name, (dtype, shape) in self._schema.items():
            values = np.array([row[name] for row in added], dtype).reshape(len(added), *shape)
            self._append(name, values.tobytes())
        # Only now do the rows count.
        with LineWriter(self.folder / "questions.jsonl") as log:
            log.append(*records)
            log.sync()
        self.records += records
        self._rows += len(added)

    def _append(self, name: str, values: bytes) -> None:
        """Puts values behind the rows of a column that count."""
        path = self.folder / "columns" / f"{name}.bin"
        size = self._rows * _row_bytes(*self._schema[name])
        # Other hosts than the first have no rows of before.
        if (path.stat().st_size if path.exists() else 0) < size and hosts.is_first():
            raise InputError(f"{path} is shorter than its questions say: mine into a new folder")
        _write(path, size, values)

    def _claim(self, head: DatasetHead) -> None:
        path = self.folder / "dataset.json"
        if not path.exists():
            write(path, head)
            return
        found = _read_head(self.folder)
        differing = [name for name in ("pair", "columns") if getattr(found, name) != getattr(head, name)]
        ours, theirs = head.origin, found.origin
        differing += sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if differing:
            raise InputError(
                f"{self.folder} holds another dataset (its {', '.join(differing)} differs): name a new folder, or "
                "repeat its options to go on with it"
            )


def _read_head(folder: Path) -> DatasetHead:
    path = folder / "dataset.json"
    if not path.is_file():
        raise InputError(f"{folder} has no dataset.json: give a folder that kljudge mine wrote")
    return read(path, DatasetHead, _ADVICE, exact=True)


def _row_bytes(dtype: str, shape: Sequence[int]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)


def _write(path: Path, at: int, data: bytes) -> None:
    """Writes after the first `at` bytes of a file, in place of what a killed writer left there, down to the disk."""
    with named(path), path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _committed(folder: Path, mend: bool = False) -> list[QuestionRecord]:
    """The records of finished questions."""
    return read_log(folder / "questions.jsonl", QuestionRecord, _ADVICE, mend=mend)

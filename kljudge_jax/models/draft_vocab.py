"""The tokens that a draft's head is cut to: where they are read from, and the cut."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.kernels.product import tiled_where_native
from kljudge_jax.kernels.quantize import QuantizedTensor, some_outputs
from kljudge_jax.models.draft_heads import decoder_of
from kljudge_jax.models.linear import matrix_of, quantized_parts
from kljudge_jax.models.ranked_head import RankedHead
from kljudge_jax.models.transformer import Transformer, assemble, parameters

_log = logging.getLogger(__name__)

DraftVocab = str | Path | Sequence[int]
"""A file with a token id a line, or the ids."""

# Of each kind of mistake so many are named.
_SHOWN = 3


def read_draft_vocab(given: DraftVocab, vocab_size: int | None = None) -> list[int]:
    """The ids, in the order in which they are given.

    Args:
      given: the path of a text file with one id a line, in which blank lines and what follows a `#` count for nothing;
        or the ids themselves.
      vocab_size: that of the models; None is not known, and any id from 0 on will do.

    Raises:
      InputError: there is no such file, or its ids are none, no whole numbers, outside the vocabulary or there twice:
        all that is wrong, in one line.
    """
    name, entries = _entries(given)
    faults: dict[str, list[str]] = {"no whole number": [], "outside": [], "twice": []}
    found: dict[int, str] = {}
    for place, entry in entries:
        number = _whole(entry)
        if number is None:
            faults["no whole number"].append(f"{place} is {entry!r}")
        elif number < 0 or (vocab_size is not None and number >= vocab_size):
            faults["outside"].append(f"{number} at {place}")
        elif number in found:
            faults["twice"].append(f"{number} at {found[number]} and {place}")
        else:
            found[number] = place
    outside = "below 0" if vocab_size is None else f"outside the vocabulary of {vocab_size}"
    said = {"no whole number": "no whole numbers", "outside": f"ids {outside}", "twice": "ids that stand there twice"}
    wrong = [f"{said[kind]} ({_some(places)})" for kind, places in faults.items() if places]
    if not found and not wrong:
        wrong = ["no ids"]
    if wrong:
        raise InputError(f"{name} has {', and '.join(wrong)}: give one token id a line, each once")
    return list(found)


def head_rows(given: DraftVocab | int | None, vocab_size: int) -> int | None:
    """How many tokens a head is cut to, by a list or a number; None where there is none.

    Raises:
      InputError: as `read_draft_vocab`, or a number that is none from 1 to the vocabulary's size.
    """
    if given is None or not isinstance(given, int | np.integer):
        return None if given is None else len(read_draft_vocab(given, vocab_size))
    if isinstance(given, bool) or not 1 <= given <= vocab_size:
        raise InputError(f"draft_vocab is a list of tokens or how many, from 1 to {vocab_size}, not {given!r}")
    return int(given)


def check_draft_vocab(given: DraftVocab | int | None, draft: Any) -> None:
    """Raises InputError where a draft's head is to be cut, and the draft, by its configuration, is none, or a head."""
    if given is not None and draft is None:
        raise InputError("draft_vocab is of a draft, and there is none: name it")
    if given is not None and decoder_of(draft) is not draft:
        raise InputError("draft_vocab cuts the head of a model, and the draft is a head of its own: leave it out")


def with_ends(ids: Iterable[int], ends: Collection[int]) -> tuple[int, ...]:
    """The ids in rising order, with those that end a text: a draft that cannot end costs every answer a cycle."""
    ids = set(ids)
    missing = sorted(set(ends) - ids)
    if missing:
        _log.warning(
            "the draft vocabulary lacks what ends a text (%s): added, so that drafts can end",
            ", ".join(map(str, missing)),
        )
    return tuple(sorted(ids | set(missing)))


def cut_head(model: Any, ids: Sequence[int]) -> Transformer:
    """The model with a head of those tokens alone: the rows are the whole head's, to the bit, however it is quantized.

    The embedding stays as it is, to be gathered from where it was the head as well. On a mesh the rows lie whole on
    every device.

    Args:
      model: with a whole head.
      ids: which tokens, in rising order.

    Raises:
      InputError: the model is none of ours, or its head is cut already.
    """
    if not isinstance(model, Transformer):
        raise InputError(
            f"draft_vocab cuts the head of a kljudge_jax.Transformer, and the draft is a {type(model).__name__}: give "
            "its logits -inf outside the list instead"
        )
    if isinstance(model.head, RankedHead):
        raise InputError("the head of the draft is cut to some tokens already: cut a whole one")
    layout, values = model.layout, parameters(model)
    where = None if layout is None else layout.replicated()
    at = jnp.asarray(np.asarray(ids, np.int32), device=where)
    whole = matrix_of(model.embedding if model.head is None else model.head)
    rows = jax.jit(functools.partial(_rows, place=model.storage.place), out_shardings=where)(whole, at)
    name = "head.rows.weight"
    values |= quantized_parts(name, rows) if isinstance(rows, QuantizedTensor) else {name: rows}
    return assemble(model.config, values | {"head.ids": at}, dataclasses.replace(model.storage, head_rows=len(ids)))


def _rows(whole, at, *, place):
    if isinstance(whole, QuantizedTensor):
        return tiled_where_native(some_outputs(whole, at), place)
    return jnp.take(whole, at, axis=0, mode="clip")


def _entries(given: DraftVocab) -> tuple[str, list[tuple[str, Any]]]:
    """What the list is called, and each entry with its place."""
    if not isinstance(given, str | Path):
        listed = list(given) if isinstance(given, Sequence | np.ndarray) else None
        if listed is None:
            raise InputError(f"draft_vocab is the path of a file or a sequence of token ids, not {given!r}")
        return "draft_vocab", [(f"place {i}", entry) for i, entry in enumerate(listed)]
    try:
        lines = Path(given).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "is no text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise InputError(f"{given}: {why}: name a text file with one token id a line") from error
    texts = [(f"line {i}", line.partition("#")[0].strip()) for i, line in enumerate(lines, 1)]
    return str(given), [(place, text) for place, text in texts if text]


def _whole(entry: Any) -> int | None:
    if isinstance(entry, str):
        digits = entry.removeprefix("-")
        return int(entry) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else None
    return int(entry) if isinstance(entry, int | np.integer) and not isinstance(entry, bool) else None


def _some(places: list[str]) -> str:
    more = len(places) - _SHOWN
    return "; ".join(places[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")

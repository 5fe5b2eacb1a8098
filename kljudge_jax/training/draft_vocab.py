"""The tokens that a draft's head is worth having rows for: the most frequent of a corpus, and the file of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.models.draft_vocab import read_draft_vocab
from kljudge_jax.records import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["count_tokens", "most_frequent", "rank_tokens", "read_draft_vocab", "share_covered", "write_draft_vocab"]

_TEXTS_AT_ONCE = 1000  # which a fast tokenizer spreads over its threads


def count_tokens(
    corpus: Iterable[str | Sequence[int]], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> np.ndarray:
    """How often each token stands in a corpus, int64 `[V]`; it is read once, a piece at a time.

    Args:
      corpus: texts, which are tokenized without special tokens, or token ids; what the draft has to write, that is
        answers rather than prompts.
      tokenizer: of the texts; None where there are none.
      vocab_size: V.

    Raises:
      InputError: texts without a tokenizer, or ids outside the vocabulary.
    """
    counts = np.zeros(vocab_size, np.int64)
    rest = iter(corpus)
    while piece := list(itertools.islice(rest, _TEXTS_AT_ONCE)):
        texts = [part for part in piece if isinstance(part, str)]
        if texts and tokenizer is None:
            raise InputError("texts need a tokenizer to be counted: give it, or token ids")
        rows = [part for part in piece if not isinstance(part, str)]
        if texts:
            assert tokenizer is not None
            rows += tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = np.concatenate([np.asarray(row, np.int64).reshape(-1) for row in rows])
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise InputError(f"the corpus has token {wrong}, outside the vocabulary of {vocab_size}")
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def most_frequent(counts: np.ndarray, size: int, always: Iterable[int] = ()) -> list[int]:
    """The `size` most frequent tokens, most frequent first, equals by their ids.

    Args:
      counts: int `[V]`, as `count_tokens` makes them.
      size: how many, from 1 to V.
      always: tokens that are among them however rare: what ends a text, other special ones.

    Raises:
      InputError: a size that cannot be, or tokens outside the vocabulary.
    """
    vocab_size, kept = len(counts), sorted(set(always))
    if kept and not 0 <= kept[0] <= kept[-1] < vocab_size:
        raise InputError(f"tokens to be kept always are outside the vocabulary of {vocab_size}: {kept}")
    if not max(1, len(kept)) <= size <= vocab_size:
        raise InputError(f"a draft vocabulary has from {max(1, len(kept))} to {vocab_size} tokens, not {size}")
    order = np.lexsort((np.arange(vocab_size), -counts))
    chosen = np.concatenate([kept, order[~np.isin(order, kept)][: size - len(kept)]]).astype(np.int64)
    return order[np.isin(order, chosen)].tolist()


def rank_tokens(
    corpus: Iterable[str | Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    size: int,
    always: Iterable[int] = (),
) -> list[int]:
    """`most_frequent` of `count_tokens`: the tokens for a ranked head, from a corpus of what the draft has to write."""
    return most_frequent(count_tokens(corpus, tokenizer, vocab_size), size, always)


def share_covered(counts: np.ndarray, ids: Sequence[int]) -> float:
    """The share of a corpus' tokens that are in the list: above it no draft with that head can be right; 1 of none."""
    total = int(counts.sum())
    return float(counts[np.asarray(ids, np.int64)].sum() / total) if total else 1.0


def write_draft_vocab(path: str | Path, ids: Sequence[int], comment: str = "") -> None:
    """Writes the list as `ModelPair.from_pretrained` reads it: one id a line, in the order given, under a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    write_text(path, head + "".join(f"{i}\n" for i in ids))

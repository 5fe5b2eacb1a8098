"""Token ids to text, all at once or as they come, with stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a decoder shows for bytes that are not a whole character yet.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer, tokens: Sequence[int] | np.ndarray) -> str:
    """The text of token ids, special tokens left out; "" without a tokenizer."""
    if tokenizer is None or len(tokens) == 0:
        return ""
    return tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def split(tokenizer, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """The text of each token; they add up to that of all."""
    pieces = Detokenizer(tokenizer)
    texts = [pieces.push(token) for token in tokens]
    if texts:
        texts[-1] += pieces.flush()
    return texts


def find_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first stop string begins in text; -1 if none does."""
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return min(found, default=-1)


def cut_at_stop(tokenizer, tokens: Sequence[int] | np.ndarray, stop: Sequence[str]) -> tuple[int, str] | None:
    """Cuts an answer at its first stop string.

    Returns:
      how many tokens to keep, the fewest whose text holds everything before the stop string, and that text; None when
      no stop string is there.
    """
    whole = decode(tokenizer, tokens)
    at = find_stop(whole, stop)
    if at < 0:
        return None
    text = whole[:at]
    low, high = 0, len(tokens)
    while low < high:  # text only grows with tokens, so the fewest can be found by halving
        middle = (low + high) // 2
        if decode(tokenizer, tokens[:middle]).startswith(text):
            high = middle
        else:
            low = middle + 1
    return low, text


class Detokenizer:
    """Turns tokens into text one by one; the pieces add up to `decode` of all of them, bar an unfinished character.

    A token alone may decode to less than it adds (a leading space) or to half a character, so each piece is the
    difference that a token makes to a short window of text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window = 0  # the window's first token
        self._shown = 0  # tokens whose text was given out

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is unfinished."""
        self._tokens.append(int(token))
        before = decode(self._tokenizer, self._tokens[self._window : self._shown])
        after = decode(self._tokenizer, self._tokens[self._window :])
        if after.endswith(_INCOMPLETE) or len(after) <= len(before):
            return ""
        self._window, self._shown = self._shown, len(self._tokens)
        return after[len(before) :]

    def flush(self) -> str:
        """What was held back: an unfinished character at the end of an answer."""
        before = decode(self._tokenizer, self._tokens[self._window : self._shown])
        after = decode(self._tokenizer, self._tokens[self._window :])
        self._window, self._shown = self._shown, len(self._tokens)
        return after[len(before) :]

"""Which tokens begin and end a thinking block: how a caller names them, and what a rule is told of them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from kljudge_jax.errors import InputError

# "auto", "none", two ids or two texts, also in one string: "3,4". See `read_section_ids`.
SectionIds: TypeAlias = str | tuple[int, int] | tuple[str, str] | None

# What "auto" looks for.
THINKING = ("<think>", "</think>")


def read_section_ids(given: Any) -> Literal["auto"] | tuple[int, int] | tuple[str, str] | None:
    """What `DecodingConfig.section_ids` holds, of all that it may be given: "none" is None, "3,4" two ids, "a,b" texts.

    Raises:
      InputError: anything else.
    """
    if given is None or (isinstance(given, str) and given == "none"):
        return None
    if isinstance(given, str) and given == "auto":
        return "auto"
    found: list[Any] = []
    if isinstance(given, str):
        found = [part.strip() for part in given.split(",")]
        found = list(map(int, found)) if all(map(_is_number, found)) else found
    elif isinstance(given, Sequence) or hasattr(given, "tolist"):
        found = list(given)
    if len(found) == 2 and found[0] != found[1]:
        begins, ends = found
        if isinstance(begins, str) and isinstance(ends, str) and begins and ends:
            return begins, ends
        if all(map(_is_id, found)):
            return int(begins), int(ends)
    raise InputError(
        "section_ids are the tokens that begin and end a thinking block, two ids or two texts such as "
        f"<think>,</think>; or auto or none; got {given!r}"
    )


def reads_sections(verifier: Any) -> bool:
    """Whether a rule names `section` in what it needs."""
    return "section" in getattr(verifier, "needs", frozenset())


def sections_for(section_ids: Any, verifier: Any, tokenizer: Any, vocab_size: int) -> tuple[int, int] | None:
    """The ids of the tokens that begin and end a section, of which a rule is told; None: it is told of none.

    Which of a draft's tokens stand in a section is computed in every cycle, so a rule that reads none is told of none:
    one that does not name `section` in what it needs by "auto", and one of this package by whatever is given.

    Args:
      section_ids: as `DecodingConfig` takes them.
      verifier: the rule; None is plain decoding.
      tokenizer: of the pair, or None.
      vocab_size: of the target.

    Raises:
      InputError: a text that is no single token, an id outside the vocabulary, or a rule that needs sections and is
        told of none.
    """
    from kljudge_jax.verification.specs import called  # a configuration is read, and helped with, without JAX

    asked, needed, name = read_section_ids(section_ids), reads_sections(verifier), called(verifier)
    if asked is None:
        if needed:
            raise InputError(
                f"{name} goes by thinking blocks, and is told of none: leave out section_ids, or name two tokens"
            )
        return None
    if asked == "auto":
        if not needed:
            return None
        begins, ends = (None if tokenizer is None else _token_of(tokenizer, text) for text in THINKING)
        if begins is None or ends is None or max(begins, ends) >= vocab_size:
            raise InputError(
                f"{name} goes by thinking blocks, and the pair has no tokens {' and '.join(THINKING)}: name two others "
                "by section_ids, or a form of the rule that holds throughout, as section=all"
            )
        return begins, ends
    tokens = [one if isinstance(one, int) else _named_token(tokenizer, one) for one in asked]
    if max(tokens) >= vocab_size:
        raise InputError(f"section_ids are {tuple(tokens)}, outside the vocabulary of {vocab_size}")
    if tokens[0] == tokens[1]:
        raise InputError(f"section_ids {asked[0]!r} and {asked[1]!r} are one token, {tokens[0]}: name two")
    from kljudge_jax.core.rule_check import is_ours

    return (tokens[0], tokens[1]) if needed or not (verifier is None or is_ours(verifier)) else None


def _named_token(tokenizer: Any, text: str) -> int:
    if tokenizer is None:
        raise InputError(f"section_ids name the text {text!r}, and the pair has no tokenizer: give token ids")
    token = _token_of(tokenizer, text)
    if token is None:
        raise InputError(
            f"section_ids name the text {text!r}, which is no single token of this tokenizer: give another text, or an "
            "id"
        )
    return token


def _token_of(tokenizer: Any, text: str) -> int | None:
    """The token that a text is, special or not; None where it is several, or unknown."""
    pieces = [(token, tokenizer.decode([token])) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    if len(pieces) > 1:  # some tokenizers put a space before every text
        pieces = [(token, piece) for token, piece in pieces if piece.strip()]
    if len(pieces) != 1 or pieces[0][1].strip() != text.strip():
        return None
    return int(pieces[0][0])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _is_id(token: Any) -> bool:
    return isinstance(token, numbers.Integral) and not isinstance(token, bool) and int(token) >= 0

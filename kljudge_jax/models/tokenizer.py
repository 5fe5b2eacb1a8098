"""A model's tokenizer: read from a folder, compared with another, and the ids that end a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kljudge_jax.errors import InputError
from kljudge_jax.models.json_file import read_foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SHOWN = 5


def has_tokenizer(folder: str | Path) -> bool:
    return any((Path(folder) / name).is_file() for name in _FILES)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, with its chat template. Code that came with a model is never run.

    Raises:
      InputError: the folder has none that can be read.
    """
    if not has_tokenizer(folder):
        raise InputError(f"{folder} has no tokenizer: add tokenizer.json, or name another with tokenizer=")
    from kljudge_jax.models.quiet_transformers import AutoTokenizer  # takes seconds to import

    try:
        return AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign file makes the library raise
        raise InputError(f"the tokenizer in {folder} cannot be read: {error}") from error


def eos_ids(folder: str | Path) -> tuple[int, ...]:
    """Every id that ends a text: of generation_config.json, else of config.json; nothing if neither says.

    A chat model's generation config lists its end-of-turn token beside the end of text.

    Raises:
      InputError: a file holds something else than ids.
    """
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        content = read_foreign(path)
        ids = content.get("eos_token_id")
        if ids is None and isinstance(content.get("text_config"), dict):
            ids = content["text_config"].get("eos_token_id")
        if ids is None or ids == []:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise InputError(f"{path}: eos_token_id is {ids!r} where token ids are needed")
        return tuple(dict.fromkeys(ids))
    return ()


def tokenizer_eos(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The tokenizer's own end of text; nothing if it has none."""
    end = getattr(tokenizer, "eos_token_id", None)
    return () if end is None else (end,)


def compare(
    target: PreTrainedTokenizerBase,
    draft: PreTrainedTokenizerBase,
    target_name: str = "target",
    draft_name: str = "draft",
) -> None:
    """Checks token by token, added ones included, that an id means the same to target and draft.

    A special token that only one of them has may stay, unless it begins or ends the target's texts: neither is ever
    asked for it. Padding is no token. Any other difference is refused, since the draft would propose something else
    than it means.

    Raises:
      InputError: the tokenizers differ; the message shows the first ids where they do.
    """
    ours, theirs = _tokens(target), _tokens(draft)
    special = {**_special(draft), **_special(target)}
    needed = {target.bos_token_id, target.eos_token_id}
    differ = []
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) == theirs.get(index):
            continue
        one_sided = index not in ours or index not in theirs
        if one_sided and index in special and index not in needed:
            continue
        differ.append(index)
    if differ:
        shown = [f"id {i} is {ours.get(i)!r} and {theirs.get(i)!r}" for i in differ[:_SHOWN]]
        more = f", and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise InputError(
            f"{target_name} and {draft_name} have different tokenizers, so one cannot draft for the other: "
            f"{', '.join(shown)}{more}; choose a draft of the same family"
        )


def check_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name: str) -> None:
    """Checks that a model of `vocab_size` tokens knows every ordinary token of its tokenizer.

    Raises:
      InputError: ordinary tokens lie past the model's vocabulary. Special ones may (Gemma 3's image token does).
    """
    special = _special(tokenizer)
    beyond = [i for i, _ in sorted(_tokens(tokenizer).items()) if i >= vocab_size and i not in special]
    if beyond:
        raise InputError(
            f"{name} has {vocab_size} tokens, but its tokenizer has token {beyond[0]}: give the tokenizer that "
            "belongs to the model"
        )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    # llama.cpp's converter fills a padded vocabulary with tokens of this name: they stand for nothing.
    return {index: token for token, index in tokenizer.get_vocab().items() if token != f"[PAD{index}]"}


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}

"""Every form a prompt may take, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.generation.chat_template import TemplateArgs, fill_template


def _is_ids(prompt: Any) -> bool:
    if isinstance(prompt, np.ndarray | jax.Array):
        return prompt.ndim == 1
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and all(_is_id(token) for token in prompt)


def _is_id(token: Any) -> bool:
    return isinstance(token, int | np.integer) and not isinstance(token, bool)


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and all(isinstance(m, Mapping) for m in prompt)


def split(prompts: Any) -> list:
    """One prompt or many, as a list of prompts: a str, a chat, or token ids each.

    A str, a chat (a list of {"role", "content"}) and a flat list or 1-D array of ids are one prompt; a list of those
    and a 2-D array are many.
    """
    if isinstance(prompts, np.ndarray | jax.Array):
        return list(np.atleast_2d(np.asarray(prompts)))
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise InputError(f"a prompt is a str, a chat or token ids, got {type(prompts).__name__}")
    if not prompts:
        raise InputError("there is no prompt: pass at least one")
    return [prompts] if _is_chat(prompts) or _is_ids(prompts) else list(prompts)


def tokenize(
    prompt: Any,
    tokenizer,
    vocab_size: int,
    where: str = "the prompt",
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
) -> np.ndarray:
    """Token ids int32 `[T]` of one prompt.

    A str is completed as it is; a chat goes through the tokenizer's chat template, up to where the answer begins.
    `template_args` are what the template is told beside the messages.

    Raises:
      InputError: an empty prompt, ids outside the vocabulary, text without a tokenizer, a chat without a template or
        one that its template refuses, or template arguments that nothing reads.
    """
    args = TemplateArgs(template_args)
    if args and (isinstance(prompt, str) or _is_ids(prompt)):
        kind = "text" if isinstance(prompt, str) else "token ids"
        raise InputError(
            f"{where} is {kind}, and {', '.join(args)} would be read by a chat's template: ask in a chat, or leave out "
            "the template arguments"
        )
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError(f"{where} is empty: there is nothing to continue")
        found = _encode(_tokenizer(tokenizer, where), prompt, where)
    elif _is_chat(prompt) and len(prompt):
        if not getattr(_tokenizer(tokenizer, where), "chat_template", None):
            raise InputError(f"{where} is a chat, but the tokenizer has no chat template: pass it as text")
        if any("role" not in message or "content" not in message for message in prompt):
            raise InputError(f'{where}: every message of a chat needs a "role" and a "content"')
        text = fill_template(tokenizer, prompt, args, where)
        found = _encode(tokenizer, text, where, add_special_tokens=False)
    elif _is_ids(prompt):
        found = prompt
    else:
        raise InputError(f"{where} is neither a str, nor a chat, nor token ids: {type(prompt).__name__}")
    ids = np.asarray(found)
    if ids.size == 0:
        raise InputError(f"{where} is empty: there is nothing to continue")
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{where}: token ids are whole numbers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        worst = int(ids.min() if ids.min() < 0 else ids.max())
        raise InputError(f"{where} holds token id {worst}, outside the vocabulary of {vocab_size}")
    return ids.astype(np.int32)


def _encode(tokenizer, text: str, where: str, **options) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is no text: it holds bytes that are not UTF-8") from error
    return tokenizer(text, **options)["input_ids"]


def _tokenizer(tokenizer, where: str):
    if tokenizer is None:
        raise InputError(f"{where} is text, but the pair has no tokenizer: pass token ids")
    return tokenizer

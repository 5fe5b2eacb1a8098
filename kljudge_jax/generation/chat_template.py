"""A chat as text: the tokenizer's template, and the arguments that it reads beside the messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from kljudge_jax.errors import InputError

# What the call of a template is told by this package: no arguments of the template's own.
_OURS = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages"),
        *("padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs"),
        "truncation",
    }
)


class TemplateArgs(Mapping[str, Any]):
    """Arguments of a chat template by name, such as `enable_thinking`: plain values, frozen and hashable.

    Args:
      given: names and values, or texts `name=value`, whose value is read as JSON where it is some, else as text.

    Raises:
      InputError: a name that no template can read or that is given twice, or a value that is not plain.
    """

    __slots__ = ("_values",)

    def __init__(self, given: Mapping[str, Any] | str | Sequence[str] = ()):
        if isinstance(given, TemplateArgs):
            self._values: dict[str, str] = given._values
            return
        pairs = list(given.items()) if isinstance(given, Mapping) else _parsed(given)
        self._values = {}
        for name, value in sorted(pairs, key=lambda one: str(one[0])):
            if not isinstance(name, str) or not name.isidentifier() or name in _OURS:
                raise InputError(f"{name!r} is no argument of a chat template: name one that it reads")
            if name in self._values:
                raise InputError(f"the template argument {name} is given twice: give it once")
            self._values[name] = _as_json(name, value)

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._values[name])  # anew each time, for a list could be changed

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TemplateArgs) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(dict(self))


def fill_template(
    tokenizer: Any,
    chat: Sequence[Mapping[str, Any]],
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    where: str = "the chat",
    **settings: bool,
) -> str:
    """The text of a chat by the tokenizer's template, up to where the answer begins.

    Args:
      tokenizer: with a template.
      chat: the messages, each with "role" and "content".
      template_args: as `TemplateArgs` takes them.
      where: what the chat is called in messages.
      **settings: as `apply_chat_template` takes them, in place of `add_generation_prompt=True`.

    Raises:
      InputError: the tokenizer has no template, or one that refuses the chat or does not read an argument.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise InputError(f"{where} is a chat, but the tokenizer has no chat template: pass it as text")
    args = TemplateArgs(template_args)
    unread = [name for name in args if not _reads(template, name)]
    if unread:
        raise InputError(f"the tokenizer's chat template does not read {', '.join(unread)}: leave it out")
    try:
        return tokenizer.apply_chat_template(
            list(chat), tokenize=False, **{"add_generation_prompt": True, **settings, **args}
        )
    except (jinja2.TemplateError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{where} does not fit the tokenizer's chat template: {error}") from error


def _reads(template: Any, name: str) -> bool:
    """Whether a template, or one of several by name, mentions a variable. Jinja ignores in silence what none does."""
    sources = template.values() if isinstance(template, Mapping) else [template]
    return any(re.search(rf"(?<![\w.'\"]){re.escape(name)}\b", source) for source in sources)


def _parsed(given: str | Sequence[str]) -> list[tuple[str, Any]]:
    texts = [given] if isinstance(given, str) else given
    found = []
    for text in texts:
        name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not equals:
            raise InputError(f"a template argument is given as name=value, such as enable_thinking=false, not {text!r}")
        try:
            found.append((name.strip(), json.loads(value, parse_constant=_no_constant)))
        except ValueError:
            found.append((name.strip(), value))
    return found


def _as_json(name: str, value: Any) -> str:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the template argument {name} is no plain value: give numbers, strings, true or false, lists or objects "
            f"of them ({error})"
        ) from error
    return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")

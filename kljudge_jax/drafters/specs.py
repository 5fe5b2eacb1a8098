"""Drafters and draft lengths by their spec strings: `lookup:3`, `self:2`, `adaptive:maximum=16`."""

from __future__ import annotations

import dataclasses

from kljudge_jax.core.controller import MEASURED, SIZE, Adaptive
from kljudge_jax.core.protocols import Drafter
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.drafters.prompt_lookup import PromptLookup
from kljudge_jax.drafters.self_draft import SelfDraft
from kljudge_jax.errors import InputError
from kljudge_jax.spec import assigned, read_spec

_DRAFTERS = {"model": ModelDraft, "lookup": PromptLookup, "self": SelfDraft}


def parse_drafter(spec: str) -> Drafter:
    """The drafter of a spec: `model`, `lookup` or `lookup:3` (ngram), `self:2` (layers).

    Raises:
      InputError: no such drafter, or a parameter that is unknown, missing or out of its range.
    """
    name, _ = read_spec(spec)
    if name not in _DRAFTERS:
        raise InputError(f"choose a drafter of {', '.join(_DRAFTERS)}, not {name!r}")
    return _make(_DRAFTERS[name], spec, [field.name for field in dataclasses.fields(_DRAFTERS[name])])


def parse_draft_length(spec: str) -> int | Adaptive:
    """The draft length of a spec: a whole number from 1 on, `adaptive`, `adaptive:8` (at most), or
    `adaptive:minimum=0,maximum=8`, or `adaptive:cost=size`.

    Raises:
      InputError: neither, or a parameter that is unknown or out of its range.
    """
    name, items = read_spec(spec)
    if name == "adaptive":
        names = [field.name for field in dataclasses.fields(Adaptive)]
        # Alone, a number is the most that is drafted.
        return _make(Adaptive, spec, ["maximum"] if len(items) == 1 and items[0].key is None else names)
    if items or not name.isdecimal() or int(name) < 1:
        raise InputError(
            f"a draft length is a whole number from 1 on, or adaptive, as in adaptive:maximum=8, not {spec!r}"
        )
    return int(name)


def spec_of(made: Drafter | Adaptive | int | str) -> str | int:
    """The spec string of a drafter or an adaptive length, as results name them; a number as it is.

    A drafter of one's own has none, and is named by its `repr`.
    """
    if isinstance(made, int | str):
        return made
    if isinstance(made, Adaptive):
        return "adaptive:" + ",".join(f"{name}={value}" for name, value in vars(made).items() if value is not None)
    name = next((name for name, kind in _DRAFTERS.items() if type(made) is kind), None)
    return repr(made) if name is None else ":".join([name, *map(str, vars(made).values())])


def _make(made: type, spec: str, names: list[str]):
    """`made` of the values of a spec string, which are numbers, but for the names of a cost."""
    name, _ = read_spec(spec)
    given: dict[str, int | float | str] = {}
    for key, text in assigned(spec, names, _usage(made, name)).items():
        if made is Adaptive and key == "cost" and text in (MEASURED, SIZE):
            given[key] = text
            continue
        try:
            given[key] = int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise InputError(f"give {name!r} a number as its {key}, not {text!r}") from None
    needed = [field.name for field in dataclasses.fields(made) if field.default is dataclasses.MISSING]
    if not given.keys() >= set(needed):
        raise InputError(f"give {name!r} its numbers, as in {_usage(made, name)!r}")
    return made(**given)


def _usage(made: type, name: str) -> str:
    shown = [
        f"{field.name}={'...' if field.default is dataclasses.MISSING else field.default}"
        for field in dataclasses.fields(made)
        if field.default is not None
    ]
    return name + (":" + ",".join(shown) if shown else "")

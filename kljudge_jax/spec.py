"""Spec strings, `name:value,key=value`: how rules, drafters, draft lengths, meshes and axes are written in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from kljudge_jax.errors import InputError


class Item(NamedTuple):
    """What stands between two commas: `key=value`, or a value alone, whose key is None; `text` as it was written."""

    key: str | None
    value: str
    text: str


def read_spec(spec: str) -> tuple[str, list[Item]]:
    """The name of a spec string, and what follows its colon."""
    name, colon, rest = spec.partition(":")
    return name.strip(), read_items(rest) if colon else []


def read_items(text: str) -> list[Item]:
    """What stands between commas; one between double quotes is a part of some text."""
    items = []
    for item in re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', text):
        key, equals, value = (part.strip() for part in item.partition("="))
        items.append(Item(key, value, item.strip()) if equals else Item(None, key, item.strip()))
    return items


def assigned(spec: str, names: Iterable[str], usage: str) -> dict[str, str]:
    """The values of a spec string by name: some in order, then some as `name=value`.

    Args:
      spec: the spec string.
      names: of the parameters that there are, in their order.
      usage: how it is written, for who wrote it otherwise.

    Raises:
      InputError: a parameter that there is not, or one given twice.
    """
    name, items = read_spec(spec)
    names, values = list(names), dict[str, str]()
    for position, (key, value, text) in enumerate(items):
        if key is None and position < len(names) and all(item.key is None for item in items[:position]):
            key = names[position]
        if key not in names:
            raise InputError(f"write {usage!r}, for {text!r} is no parameter of {name!r}")
        if key in values:
            raise InputError(f"give {name!r} its {key} once, not twice as in {spec!r}")
        values[key] = value
    return values


def split_specs(text: str) -> list[str]:
    """Spec strings with commas between: `exact,kl:0.4,confidence=1.0` are two, and so are `8,adaptive:4,cost=size`.

    What follows a comma belongs to the spec string before it, if that has parameters and this could not be another's
    name. `kl:0.1/0.4` stands for `kl:0.1` and `kl:0.4`, `secure:kl:0.1/0.4` for `secure:kl:0.1` and `secure:kl:0.4`.
    """
    specs: list[str] = []
    for _, _, piece in read_items(text):
        if specs and ":" in specs[-1] and not re.fullmatch(r"[a-z_]+\s*(:.*)?", piece):
            specs[-1] += f",{piece}"
        else:
            specs.append(piece)
    found: list[str] = []
    for spec in specs:
        name, _, rest = spec.rpartition(":")
        several = [each.strip() for each in rest.split("/")]
        alike = len(several) > 1 and all(re.fullmatch(r"[-+.\de]+", each) for each in several)
        found += [f"{name}:{each}" for each in several] if alike else [spec]
    return found

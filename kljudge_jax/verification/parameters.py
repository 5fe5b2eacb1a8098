"""A rule's parameters: what each may be, said once for its constructor, the command line and the table of rules."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import numpy as np

from kljudge_jax.errors import InputError

_INFINITY = math.inf


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What a value may be.

    Attributes:
      choices: the names it is one of; empty for a number.
      integer: whether the number is whole.
      minimum, maximum: the range of a number, both ends included.
      open_below, open_above: `minimum` itself, `maximum` itself is refused.
      relaxes: "up" where larger values keep more of a draft, "down" where smaller ones do, "" where that depends.
    """

    choices: tuple[str, ...] = ()
    integer: bool = False
    minimum: float = -_INFINITY
    maximum: float = _INFINITY
    open_below: bool = False
    open_above: bool = False
    relaxes: str = ""

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = "a whole number" if self.integer else "a number"
        low = f" {'above' if self.open_below else 'from'} {self.minimum:g}" if self.minimum != -_INFINITY else ""
        high = f" {'below' if self.open_above else 'up to'} {self.maximum:g}" if self.maximum != _INFINITY else ""
        return kind + low + high

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuses a concrete value that is out of range; lets every tracer, array and placeholder pass.

        A pytree is rebuilt through its constructor with whatever a transformation puts in place of the leaves, so
        only values that a person can have written are looked at.
        """
        if self.choices:
            wrong = value not in self.choices
        elif isinstance(value, numbers.Real):
            # As the device will hold it: 1e-60 is 0 there, and 0.999999999 is 1.
            held: Any = value
            if not self.integer:
                with np.errstate(over="ignore"):
                    held = float(np.float32(held))
            too_low = held <= self.minimum if self.open_below else held < self.minimum
            too_high = held >= self.maximum if self.open_above else held > self.maximum
            wrong = math.isnan(held) or too_low or too_high
            wrong |= self.integer and not (float(held).is_integer() and abs(held) < 2**31)
        else:
            wrong = value is None or isinstance(value, str | bytes)
        if wrong:
            raise InputError(f"give {owner} {self} as its {name}, not {value!r}")

    def parse(self, owner: str, name: str, text: str) -> Any:
        """The value that `text` spells, checked."""
        value: float | int | str = text
        if not self.choices:
            try:
                value = int(text) if self.integer else float(text)
            except ValueError:
                raise InputError(f"give {owner} {self} as its {name}, not {text!r}") from None
        self.check(owner, name, value)
        return value


def number(
    default=dataclasses.MISSING,
    *,
    minimum=-_INFINITY,
    maximum=_INFINITY,
    open_below=False,
    open_above=False,
    relaxes="",
):
    """A dataclass field that holds a number: data, so that changing it compiles nothing."""
    return _field(default, Parameter((), False, minimum, maximum, open_below, open_above, relaxes))


def integer(default=dataclasses.MISSING, *, minimum=-_INFINITY, maximum=_INFINITY, relaxes=""):
    """A dataclass field that holds a whole number: data as well."""
    return _field(default, Parameter(integer=True, minimum=minimum, maximum=maximum, relaxes=relaxes))


def first_tokens(default: int = 1):
    """A whole number: so many first tokens of an answer the strict rule decides alone (`Rule.first`)."""
    return integer(default, minimum=0, relaxes="down")


def choice(*choices: str, default=dataclasses.MISSING):
    """A dataclass field that holds one of some names: part of the compiled program."""
    return _field(default, Parameter(choices=choices), static=True)


def probability(default=dataclasses.MISSING, *, relaxes=""):
    """A number from 0 to 1."""
    return number(default, minimum=0.0, maximum=1.0, relaxes=relaxes)


def parameters_of(rule: type) -> dict[str, tuple[Parameter, object]]:
    """A rule's parameters by name, in order, each with its default (`dataclasses.MISSING` if it has none)."""
    fields = dataclasses.fields(rule)
    return {field.name: (field.metadata.get("parameter", Parameter()), field.default) for field in fields}


def _field(default, parameter: Parameter, static: bool = False):
    return dataclasses.field(default=default, metadata={"parameter": parameter, "static": static})

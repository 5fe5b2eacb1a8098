"""Functions that are equal where they do the same, so that what is compiled for one serves another."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any


class Function:
    """A function that equals another of the same code and the same closure, so that both run one compiled program.

    Where the closure holds what has no hash, an array for instance, it equals itself alone.
    """

    def __init__(self, function: Callable):
        self.function = function
        try:
            self._key: Any = _key(function)
            self._hash = hash(self._key)
        except (TypeError, ValueError, RecursionError):  # no hash; a name not bound yet; a function that holds itself
            self._key = id(function)
            self._hash = hash(self._key)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Function) and self._key == other._key)


def _key(x: Any) -> Any:
    if isinstance(x, functools.partial):
        return "partial", _key(x.func), tuple(map(_key, x.args)), _items(x.keywords)
    if isinstance(x, types.MethodType):
        return "method", _key(x.__func__), _key(x.__self__)
    if isinstance(x, types.FunctionType):
        held = tuple(_key(cell.cell_contents) for cell in x.__closure__ or ())
        defaults = tuple(map(_key, x.__defaults__ or ())), _items(x.__kwdefaults__ or {})
        # Code objects of two files may be equal, and a cell that is run again may name another number.
        return x.__code__.co_filename, x.__code__, held, defaults, _globals(x.__code__, x.__globals__)
    return type(x), x  # 1, 1.0 and True are equal, and no program is the same with each


def _globals(code: types.CodeType, named: dict[str, Any]) -> Any:
    """What the names stand for that a function takes from its module, those of functions within it too."""
    inner = tuple(_globals(each, named) for each in code.co_consts if isinstance(each, types.CodeType))
    return tuple((name, _key(named[name])) for name in code.co_names if name in named), inner


def _items(keywords: dict[str, Any]) -> Any:
    return tuple((name, _key(value)) for name, value in sorted(keywords.items()))

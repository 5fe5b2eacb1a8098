"""A model as a flat tuple of its arrays: what is handed to a compiled function again and again."""

from __future__ import annotations

import dataclasses
from typing import Any, overload

import jax

from kljudge_jax.models.transformer import Transformer


class _Structure:
    """A tree's structure of which there is one object each, so that to compare two takes no time."""

    def __init__(self, tree: Any):
        self.tree = tree
        self._hash = hash(tree)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other


_structures: dict[Any, _Structure] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatModel:
    """A model taken apart. To take a module apart costs milliseconds of Python, for each of its layers is a module."""

    leaves: tuple[jax.Array, ...]
    structure: _Structure = dataclasses.field(metadata={"static": True})


def flatten(model: Transformer | None) -> FlatModel | None:
    """The model for many calls of a compiled function, which `unflatten`s it."""
    if model is None:
        return None
    leaves, tree = jax.tree.flatten(model)
    return FlatModel(tuple(leaves), _structures.setdefault(tree, _Structure(tree)))


@overload
def unflatten(model: FlatModel | Transformer) -> Transformer: ...
@overload
def unflatten(model: None) -> None: ...
def unflatten(model: FlatModel | Transformer | None) -> Transformer | None:
    """The model that was packed; any other as it is."""
    return jax.tree.unflatten(model.structure.tree, model.leaves) if isinstance(model, FlatModel) else model

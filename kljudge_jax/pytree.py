"""Classes as pytrees whose structures are never taken for one another's: what `kljudge_jax.register` stands on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax


def register_node(kind: type, data: Sequence[str], static: Sequence[str]) -> None:
    """Makes a class a pytree: attributes `data` are its children, `static` a part of its structure."""

    def flatten(instance):
        return tuple(getattr(instance, name) for name in data), tuple(getattr(instance, name) for name in static)

    def flatten_with_keys(instance):
        children, choices = flatten(instance)
        return tuple(zip(map(jax.tree_util.GetAttrKey, data), children, strict=True)), choices

    def unflatten(choices, children):
        # Not by its constructor, which may refuse what JAX puts in place of arrays, such as None in `shard_map`.
        instance = object.__new__(kind)
        for name, value in zip((*static, *data), (*choices, *children), strict=True):
            object.__setattr__(instance, name, value)
        return instance

    # Not jax.tree_util.register_dataclass: in jaxlib 0.10.2 the structures of two such classes with as many fields
    # compare equal, and when their hashes collide, one time in thirty, jit runs one class's program for the other.
    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    _registered.add(kind)


def is_registered(kind: type) -> bool:
    """Whether `register_node` made the class a pytree; one that derives from such a class is none by that."""
    return kind in _registered


def is_mistaken(tree: Any) -> bool:
    """Whether JAX takes the structure of this tree's class for that of any other class with as many fields.

    So it is under `jax.tree_util.register_dataclass` and what stands on it, as `flax.struct.dataclass` does.
    """
    flat: Any = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    children, structure = flat
    node = structure.node_data()
    if node is None or not dataclasses.is_dataclass(node[0]) or not isinstance(node[1], tuple):
        return False
    other = _stand_in(len(children), len(node[1]))
    fields = [field.name for field in dataclasses.fields(other)]
    values = dict(zip(fields, [*node[1], *children], strict=True))
    found: Any = jax.tree.structure(other(**values), is_leaf=lambda x: not isinstance(x, other))
    return found == structure


@functools.cache
def _stand_in(data: int, static: int) -> Any:
    """A class with so many fields, registered in the way that is asked about."""
    names = [f"static{i}" for i in range(static)], [f"data{i}" for i in range(data)]
    made = dataclasses.make_dataclass("StandIn", [*names[0], *names[1]], frozen=True)
    return jax.tree_util.register_dataclass(made, data_fields=names[1], meta_fields=names[0])


_registered: set[type] = set()

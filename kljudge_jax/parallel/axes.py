"""The logical axes of every array, named once, and the table that maps them to the axes of a mesh."""

from __future__ import annotations

import re

from kljudge_jax.errors import InputError
from kljudge_jax.spec import read_items

BATCH, HEADS, KV_HEADS, MLP, VOCAB, EMBED = LOGICAL = ("batch", "heads", "kv_heads", "mlp", "vocab", "embed")

MESH_AXES = ("data", "fsdp", "tensor")

# The one table: which mesh axes split a logical axis, the slowest first. `fsdp` splits weights by the hidden size and
# the batch as well, as in fully sharded data parallelism.
RULES: dict[str, tuple[str, ...]] = {
    BATCH: ("data", "fsdp"),
    HEADS: ("tensor",),
    KV_HEADS: ("tensor",),
    MLP: ("tensor",),
    VOCAB: ("tensor",),
    EMBED: ("fsdp",),
}
REPLICATED = "replicated"

# Input and output of every matrix, by the end of its module's dotted name.
_MATRICES: dict[str, tuple[str, str]] = {
    "attention.query": (EMBED, HEADS),
    "attention.key": (EMBED, KV_HEADS),
    "attention.value": (EMBED, KV_HEADS),
    "attention.out": (HEADS, EMBED),
    "mlp.gate": (EMBED, MLP),
    "mlp.up": (EMBED, MLP),
    "mlp.down": (MLP, EMBED),
    "head": (EMBED, VOCAB),
    "embedding": (EMBED, VOCAB),
}

# Which logical axes meet in one array, beside those of the matrices: they cannot share an axis of the mesh.
_TOGETHER = {
    (BATCH, HEADS): "the queries",
    (BATCH, KV_HEADS): "the caches",
    (BATCH, MLP): "the MLP's inner states",
    (BATCH, VOCAB): "the logits",
}


def parameter_axes(name: str, ndim: int, order: str = "") -> tuple[str | None, ...]:
    """Logical axes of the parameter of a dotted name; None is an axis that is never split.

    `order` is that of the three axes of a matrix in groups of columns: "g" is the groups, "k" the columns of one, "o"
    the outputs.
    """
    module = name.rpartition(".")[0]
    ends = next((ends for end, ends in _MATRICES.items() if module == end or module.endswith(f".{end}")), None)
    if ends is None:
        return (None,) * ndim
    into, out = ends
    if ndim == 2:  # a matrix, or the scales or minima of one in integers
        return (out, into)
    if ndim == 3:
        return tuple({"g": into, "k": None, "o": out}[axis] for axis in order)
    # What is added to or multiplies the output. Hidden states are never split by their size.
    return (None if out == EMBED else out,)


def parse_axes(spec: str | None, name: str = "axes") -> dict[str, tuple[str, ...]]:
    """The table that a spec string stands for: changes to the one above, such as "vocab=none,batch=data+fsdp".

    "replicated" keeps the weights whole on every device, and may be changed as well: "replicated,vocab=tensor".

    Raises:
      InputError: an unknown axis, one named twice, or two that meet in one array and share an axis of the mesh.
    """
    rules, named = dict(RULES), set()
    for i, (logical, text, _) in enumerate(read_items(spec) if spec else ()):
        if i == 0 and logical is None and text == REPLICATED:
            rules = {axis: RULES[axis] if axis == BATCH else () for axis in LOGICAL}
            continue
        mesh_axes = () if text == "none" else tuple(re.split(r"\s*\+\s*", text))
        if logical not in LOGICAL or not set(mesh_axes) <= set(MESH_AXES):
            raise InputError(
                f"{name} {spec!r}: write {REPLICATED}, or axes as in vocab=none, batch=data+fsdp, kv_heads=tensor, of "
                f"{', '.join(LOGICAL)} on {', '.join(MESH_AXES)}"
            )
        if logical in named or len(set(mesh_axes)) < len(mesh_axes):
            raise InputError(f"{name} {spec!r} names {logical if logical in named else text} twice")
        named.add(logical)
        rules[logical] = mesh_axes
    if rules[HEADS][: len(rules[KV_HEADS])] != rules[KV_HEADS]:
        raise InputError(
            f"{name} {spec!r} maps {KV_HEADS} to {'+'.join(rules[KV_HEADS])} and {HEADS} not: query heads lie with "
            f"their kv heads, so map both alike, or {KV_HEADS} to none"
        )
    _check_collisions(rules, f"{name} {spec!r}")
    return rules


def _check_collisions(rules: dict[str, tuple[str, ...]], where: str) -> None:
    together = {tuple(ends): f"the matrices {module}" for module, ends in _MATRICES.items()} | _TOGETHER
    for (first, second), array in together.items():
        shared = [axis for axis in rules[first] if axis in rules[second]]
        if shared:
            raise InputError(
                f"{where} maps both {first} and {second} to {shared[0]}, and {array} have both: map one of them to "
                "another axis or to none"
            )

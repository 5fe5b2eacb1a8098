"""Where one model's arrays lie on a mesh: the table of logical axes, resolved for the model's own sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from kljudge_jax.parallel.axes import BATCH, EMBED, HEADS, KV_HEADS, LOGICAL, MLP, VOCAB, parameter_axes

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model's parameters, caches and states are split. Hashable: a model carries it across jit boundaries.

    Make one with `create`.

    Attributes:
      mesh: the devices; an `AbstractMesh` will do for planning.
      axes: per logical axis, in the order of `axes.LOGICAL`, the mesh axes that split it in this model.
      spare: the mesh axes that kv heads should have been split by, had there been enough of them: they split the rows
        of the caches instead, where there are enough rows.
    """

    mesh: Mesh | AbstractMesh
    axes: tuple[tuple[str, ...], ...]
    spare: tuple[str, ...] = ()

    @classmethod
    def create(cls, mesh: Mesh | AbstractMesh, rules: Mapping[str, tuple[str, ...]], config: Any) -> Layout:
        """The layout of a model of that configuration; `rules` as `axes.parse_axes` gives them.

        Heads, and every other size, are split by the mesh's factors in their order, smallest first, up to the first
        that does not divide, and kept whole by that one and those after it.
        """
        sizes = {
            HEADS: config.num_heads,
            KV_HEADS: config.num_kv_heads,
            MLP: config.intermediate_size,
            VOCAB: config.vocab_size,
            EMBED: config.hidden_size,
        }
        asked = {
            logical: tuple(axis for name in rules[logical] for axis in mesh.axis_names if axis.startswith(f"{name}."))
            for logical in LOGICAL
        }
        found = {
            logical: asked[logical] if logical == BATCH else _dividing(mesh, asked[logical], sizes[logical])
            for logical in LOGICAL
        }
        # The query heads of a kv head stay together, so they follow its split.
        if found[HEADS][: len(found[KV_HEADS])] != found[KV_HEADS]:
            found[HEADS] = found[KV_HEADS]
        spare = tuple(axis for axis in asked[KV_HEADS] if axis not in found[KV_HEADS] and axis not in asked[BATCH])
        return cls(mesh, tuple(found[logical] for logical in LOGICAL), spare)

    @property
    def platform(self) -> str | None:
        """The platform of the mesh's devices: "cpu", "gpu" or "tpu"; None of a mesh without devices."""
        return self.mesh.devices.flat[0].platform if isinstance(self.mesh, Mesh) else None

    def ways(self, logical: str) -> int:
        """Over how many devices a logical axis is split; for the batch, at most."""
        return _product(self.mesh, self._split(logical))

    def input_ways(self, name: str) -> int:
        """Over how many devices the inputs of the matrix of a dotted name are split."""
        into = parameter_axes(name, 2)[1]
        return 1 if into is None else self.ways(into)

    def row_ways(self, rows: int) -> int:
        """Over how many devices so many rows of a batch are split."""
        return _product(self.mesh, _dividing(self.mesh, self._split(BATCH), rows))

    def spec(self, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
        """How an array of these logical axes and sizes is split; a batch, by the factors that divide it."""
        return PartitionSpec(
            *(
                None if axis is None else _entry(_dividing(self.mesh, self._split(axis), size))
                for axis, size in zip(axes, shape, strict=True)
            )
        )

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array of these logical axes and sizes."""
        return self._named(self.spec(axes, shape))

    def parameter(self, name: str, shape: Sequence[int], order: str = "") -> NamedSharding:
        """The sharding of the parameter of a dotted name; `order` as `parameter_axes` takes it."""
        return self.sharding(parameter_axes(name, len(shape), order), shape)

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Says where x lies inside a compiled program; leading axes that are not named are the batch's, then whole."""
        missing = x.ndim - len(axes)
        named = ((BATCH,) + (None,) * (missing - 1) if missing else ()) + axes
        return jax.lax.with_sharding_constraint(x, self.sharding(named, x.shape))

    def rows(self, tree: Tree) -> Tree:
        """The same for arrays of a state, whose first axis is the batch."""
        return jax.tree.map(lambda x: self.constrain(x, *((None,) * (x.ndim - 1))) if x.ndim else x, tree)

    def attention(self, x: jax.Array) -> jax.Array:
        """The same for keys, values and caches `[B, G, S, D]`, and for grouped queries `[B, G, N/G, T, D]`."""
        return jax.lax.with_sharding_constraint(x, self.attention_sharding(x.shape))

    def attention_sharding(self, shape: Sequence[int]) -> NamedSharding:
        """The sharding of such an array: rows by the batch's axes and by what kv heads leave over."""
        rows = _dividing(self.mesh, self._split(BATCH), shape[0])
        kv_heads = self._split(KV_HEADS)
        if len(rows) == len(self._split(BATCH)):
            rows += _dividing(self.mesh, self.spare, shape[0] // _product(self.mesh, rows))
        entries = [_entry(rows), _entry(kv_heads)]
        if len(shape) == 5:
            left = [axis for axis in self._split(HEADS) if axis not in kv_heads and axis not in rows]
            entries.append(_entry(_dividing(self.mesh, tuple(left), shape[2])))
        return self._named(PartitionSpec(*entries, *((None,) * (len(shape) - len(entries)))))

    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device has whole."""
        return self._named(PartitionSpec())

    def _split(self, logical: str) -> tuple[str, ...]:
        return self.axes[LOGICAL.index(logical)]

    def _named(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)


def undivided(layout: Layout, rules: Mapping[str, tuple[str, ...]], config: Any, whose: str) -> list[str]:
    """What a person should know of heads and sizes that the mesh does not divide, a sentence each."""
    counts = {
        HEADS: f"{config.num_heads} query heads",
        KV_HEADS: f"{config.num_kv_heads} kv heads",
        MLP: f"{config.intermediate_size} inner features of the MLP",
        VOCAB: f"{config.vocab_size} tokens",
        EMBED: f"hidden size of {config.hidden_size}",
    }
    found = []
    for logical, count in counts.items():
        wanted = {name: _product(layout.mesh, _factors(layout.mesh, name)) for name in rules[logical]}
        ways, asked = (
            layout.ways(logical),
            _product(layout.mesh, sum(map(lambda n: _factors(layout.mesh, n), wanted), ())),
        )
        if ways < asked:
            on = ", ".join(f"{name}={size}" for name, size in wanted.items() if size > 1)
            how = f"is split {ways} ways and repeated" if ways > 1 else "is kept whole on each device"
            more = "; the caches are split by rows where there are enough" if logical == KV_HEADS else ""
            found.append(f"the {whose}'s {count} do not divide over {on}: that axis {how}{more}")
    return found


def _factors(mesh, name: str) -> tuple[str, ...]:
    return tuple(axis for axis in mesh.axis_names if axis.startswith(f"{name}."))


def _dividing(mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The leading mesh axes whose product divides a size."""
    kept: tuple[str, ...] = ()
    for axis in axes:
        if size % (_product(mesh, kept) * mesh.shape[axis]):
            break
        kept += (axis,)
    return kept


def _product(mesh, axes: Sequence[str]) -> int:
    total = 1
    for axis in axes:
        total *= mesh.shape[axis]
    return total


def _entry(axes: tuple[str, ...]) -> tuple[str, ...] | None:
    return axes or None

"""The cache of an adapted model: one of one row for each row, stacked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.models.equal_functions import Function
from kljudge_jax.pytree import register_node


@dataclasses.dataclass(frozen=True)
class Rows:
    """How rows are made, and where they lie: what an adapted model and its caches share. Static.

    Attributes:
      init_cache: `(slots) -> cache` of one row.
      rollback: how many tokens a cache can take back; None is any number.
      axes: the mesh axes that rows are split over.
      mesh: the devices; None where only the call knows of them.
    """

    init_cache: Function
    rollback: int | None
    axes: tuple[str, ...] = ()
    mesh: Mesh | None = None

    def one(self, slots: int) -> Any:
        """An empty cache of one row."""
        return jax.tree.map(jnp.asarray, self.init_cache(slots))

    def shapes(self, slots: int) -> list[jax.ShapeDtypeStruct]:
        """The shape of every leaf of it."""
        return jax.tree.leaves(jax.eval_shape(lambda: self.one(slots)))

    def names(self, rows: int) -> tuple[str, ...] | None:
        """The mesh axes that so many rows are split over, as `jax.vmap` takes them."""
        # Inside shard_map over them, what a device sees is not split any more.
        axes = tuple(axis for axis in self.axes if axis not in jax.sharding.get_abstract_mesh().manual_axes)
        if not axes or axes != self.axes or (self.mesh is not None and rows % _ways(self.mesh, axes)):
            return None
        return axes

    def placed(self, x: jax.Array) -> jax.Array:
        """An array whose first axis is rows, said to lie with them; how its other axes are split is left open."""
        if self.mesh is None or not x.ndim or self.names(x.shape[0]) is None:
            return x
        others = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(self.axes, *others)))


@dataclasses.dataclass(frozen=True)
class AdaptedCache:
    """Caches of one row each, stacked: every leaf `[B, ...]`. See `kljudge_jax.Cache`.

    Slots are found by asking `init_cache` for another number of them: the axes whose size differs are theirs.

    Attributes:
      stacked: the pytree that `init_cache` returns, with rows before its axes.
      length: int32 `[B]`. The position that a row's own cache holds is set to it before each pass.
      slots: of a row.
      rows: how they are made.
    """

    stacked: Any
    length: jax.Array
    slots: int
    rows: Rows

    @property
    def rollback(self) -> int | None:
        """How many tokens `at_length` can take back; None is any number."""
        return self.rows.rollback

    def at_length(self, length: jax.Array) -> AdaptedCache:
        """The same cache with `length` tokens consumed, int32 `[B]`."""
        return dataclasses.replace(self, length=jnp.asarray(length, jnp.int32))

    def resized(self, slots: int) -> AdaptedCache:
        """With so many slots a row, new ones as `init_cache` has them.

        Outside of a trace the arrays given are deleted, one after another.
        """
        leaves, structure = jax.tree.flatten(self.stacked)
        moved = []
        for i, (leaf, shape) in enumerate(zip(leaves, self.rows.shapes(slots), strict=True)):
            same = leaf.shape[1:] == shape.shape
            moved.append(leaf if same else _resized(leaf, rows=self.rows, slots=slots, index=i))
            if not same and not isinstance(leaf, jax.core.Tracer):
                leaf.delete()
        return dataclasses.replace(self, stacked=jax.tree.unflatten(structure, moved), slots=slots)

    def take(self, row: jax.Array, slots: int) -> AdaptedCache:
        """The first slots of row int32 `[]`, as a cache of one row."""
        leaves, structure = jax.tree.flatten(self.stacked)
        split = self.rows.names(self.length.shape[0]) is not None

        def taken(x):
            # Of rows on several devices all but one are masked: a slice at a place that is not known when it is
            # compiled would gather all of them.
            if split and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
                own = (jnp.arange(x.shape[0]) == row).reshape(-1, *(1,) * (x.ndim - 1))
                if x.dtype == jnp.bool_:
                    return jnp.any(own & x, axis=0, keepdims=True)
                return jnp.sum(jnp.where(own, x, jnp.zeros((), x.dtype)), axis=0, keepdims=True, dtype=x.dtype)
            return jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0)

        shapes = self.rows.shapes(slots)
        part = [taken(_cut(x, (x.shape[0], *shape.shape))) for x, shape in zip(leaves, shapes, strict=True)]
        return dataclasses.replace(
            self, stacked=jax.tree.unflatten(structure, part), length=taken(self.length), slots=slots
        )

    def put(self, row: jax.Array, other: AdaptedCache) -> AdaptedCache:
        """With a cache of one row, of as many slots or fewer, in place of row int32 `[]`."""
        if other.slots != self.slots:
            # What the row before has left may not stay: a ring's slots are any positions', and what a call masks may be
            # NaN, of which 0 times is NaN.
            leaves, structure = jax.tree.flatten(other.stacked)
            whole = [_fitted(x, self.rows, self.slots, i) for i, x in enumerate(leaves)]
            other = dataclasses.replace(other, stacked=jax.tree.unflatten(structure, whole))

        def placed(x, new):
            return jax.lax.dynamic_update_slice(x, new, (row, *(jnp.zeros((), row.dtype),) * (x.ndim - 1)))

        row = jnp.asarray(row)
        return dataclasses.replace(
            self,
            stacked=jax.tree.map(placed, self.stacked, other.stacked),
            length=placed(self.length, other.length),
        )

    def follow(self, source: jax.Array, start: jax.Array, count: int) -> AdaptedCache:
        """With slots `start[b]` to `start[b] + count` of row `source[b]` in those of row b, int32 `[B]` both.

        A leaf whose slots are no positions is copied whole, a ring for instance.
        """
        leaves, structure = jax.tree.flatten(self.stacked)
        others = self.rows.shapes(self.slots + 1)

        def copied(x, other):
            axes = [i for i, (a, b) in enumerate(zip(x.shape[1:], other.shape, strict=True)) if a != b]
            if len(axes) != 1 or x.shape[1 + axes[0]] != self.slots:
                return jnp.take(x, source, axis=0)

            sizes = (1, *(count if i == axes[0] else size for i, size in enumerate(x.shape[1:])))

            def written(row, at, of):
                # A slice of all rows at once: mapped, it is a gather of so many slots, and of no row whole.
                place = [jnp.zeros((), at.dtype)] * x.ndim
                place[0], place[1 + axes[0]] = of.astype(at.dtype), at
                new = jax.lax.dynamic_slice(x, place, sizes)[0]
                return jax.lax.dynamic_update_slice(row, new, place[1:])

            return jax.vmap(written)(x, start, source)

        moved = [copied(x, other) for x, other in zip(leaves, others, strict=True)]
        return dataclasses.replace(self, stacked=jax.tree.unflatten(structure, moved))


def _cut(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The first of each axis."""
    return jax.lax.slice(x, (0,) * x.ndim, tuple(map(min, x.shape, shape)))


def _fitted(x: jax.Array, rows: Rows, slots: int, index: int) -> jax.Array:
    """Leaf number `index` `[B, ...]` of caches in the shape that it has with so many slots."""
    # As it is when it is empty: zero may be a position, and mean a token.
    empty = jax.tree.leaves(rows.one(slots))[index]
    fresh = jnp.broadcast_to(empty[None], (x.shape[0], *empty.shape))
    return jax.lax.dynamic_update_slice(fresh, _cut(x, fresh.shape), (0,) * x.ndim)


@functools.partial(jax.jit, static_argnames=("rows", "slots", "index"))
def _resized(x, *, rows, slots, index):
    return rows.placed(_fitted(x, rows, slots, index))


def _ways(mesh: Mesh, axes: tuple[str, ...]) -> int:
    ways = 1
    for axis in axes:
        ways *= mesh.shape[axis]
    return ways


register_node(AdaptedCache, ("stacked", "length"), ("slots", "rows"))

"""The key/value cache of our own decoder: a pytree indexed by position."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kljudge_jax.kernels.attention import cached_attention, is_native
from kljudge_jax.kernels.place import Place, default_platform
from kljudge_jax.models.attention import attend
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.written_attention import attend_written, can_read_written, kernel_of
from kljudge_jax.parallel.layout import Layout

# A window is cut out of a cache that is so many times as long: what is copied is read, written, and read again.
_TO_COPY = 4

# Numbers side by side in a TPU's memory: XLA puts slots there where a head has fewer.
_LANES = 128

# Rows of a cache that are written one by one; programs of more take minutes to compile.
_MOST_UNROLLED = 64


class Layer(NamedTuple):
    """Keys and values of one layer, `[B, G, S, D]` each, and where they lie on a mesh."""

    keys: jax.Array
    values: jax.Array
    layout: Layout | None = None
    platform: str | None = None

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        *,
        window: int = 0,
        softcap: float = 0.0,
    ) -> tuple[jax.Array, Layer]:
        """Writes new keys and values at their positions, and attends to all that each query can see.

        Args:
          query: `[B, T, N, D]`, rotated and scaled.
          key, value: `[B, T, G, D]`, keys rotated.
          positions: int32 `[B, T]`, consecutive in a row; `positions[:, 0] + T` may not pass S.
          window: how many positions a query sees, its own included; 0 is all.
          softcap: scores are squeezed to this size; 0 is off.

        Returns:
          `[B, T, N, D]`, and the layer with T more tokens a row.
        """
        length, layout = query.shape[1], self.layout
        start, place = positions[:, 0], place_of(layout, self.platform)
        if is_native(place, self.keys):
            mixed, all_keys, all_values = cached_attention(
                query, key, value, start, self.keys, self.values, window=window, softcap=softcap
            )
            return mixed, self._replace(keys=all_keys, values=all_values)
        layer = self.write(key, value, start)
        keys, values = layer.keys, layer.values
        sees: dict[str, Any] = {"window": window, "softcap": softcap, "layout": layout}
        kernel = kernel_of(query.shape, keys, keys.dtype, layout, place.platform)
        if kernel is not None:
            mixed = attend_written(kernel, query.astype(keys.dtype), keys, values, start, **sees)
            return mixed.astype(query.dtype), layer
        slots = jnp.arange(keys.shape[2])[None, None]
        seen = window + length - 1  # from the first query's window to the last query
        # Not on a mesh: each row's window begins elsewhere, and its rows lie on several devices.
        if layout is None and window > 0 and _TO_COPY * seen <= keys.shape[2]:
            first = jnp.clip(start - (seen - length), 0, keys.shape[2] - seen)
            keys, values = (read_rows(x, first, seen) for x in (keys, values))
            slots = first[:, None, None] + jnp.arange(seen)[None, None]
        return attend(query, keys, values, positions, slots, **sees), layer

    def write(self, key: jax.Array, value: jax.Array, start: jax.Array) -> Layer:
        """The layer with new keys and values `[B, T, G, D]`, as `attend` takes them, from slot `start[b]` on."""
        key, value = (_placed(x.swapaxes(1, 2), self.layout) for x in numbers_only(key, value))
        keys = write_rows(self.keys, key, start, self.layout, self.platform)
        return self._replace(keys=keys, values=write_rows(self.values, value, start, self.layout, self.platform))

    @property
    def scales(self) -> tuple[jax.Array, jax.Array] | None:
        """What keys and values are to be multiplied by, f32 `[B, G, S]` each; None is 1."""
        return None


class Positions:
    """What every cache does that keeps one slot a position: fields named in `stored`, a tuple of a layer's arrays
    `[B, G, S, ...]` each, with `length` int32 `[B]`, `layout` and `platform` beside them.

    Slot s of row b holds position s of that row's sequence. Slots from `length[b]` on are stale: no query can see
    them, because a query at position p sees slots up to p and its own are written first. So rolling back is a smaller
    length and nothing else.
    """

    stored: ClassVar[tuple[str, ...]]
    layer_type: ClassVar[type]
    rollback: ClassVar[int | None] = None
    length: jax.Array
    layout: Layout | None
    platform: str | None

    @property
    def slots(self) -> int:
        return getattr(self, self.stored[0])[0].shape[2]

    @property
    def reads_all(self) -> bool:
        """Whether a pass reads every slot, so that a smaller cache makes it faster; else it reads those written."""
        stored = getattr(self, self.stored[0])[0]
        return not can_read_written(stored, place_of(self.layout, self.platform).platform)

    def layer(self, i: int) -> Any:
        return self.layer_type(*(getattr(self, name)[i] for name in self.stored), self.layout, self.platform)

    def with_layers(self, layers: list[Any], length: jax.Array) -> Self:
        """The cache with its first layers replaced, and so many tokens consumed, int32 `[B]`."""
        changed = {
            name: tuple(layer[side] for layer in layers) + getattr(self, name)[len(layers) :]
            for side, name in enumerate(self.stored)
        }
        return self._with(**changed, length=length)

    def constrained(self) -> Self:
        """The same cache, said to lie where its layout has it."""
        if self.layout is None:
            return self
        return self._map(self.layout.attention)._with(length=self.layout.rows(self.length))

    def at_length(self, length: jax.Array) -> Self:
        """The same cache with `length` tokens consumed, int32 `[B]`: a rollback when it is smaller."""
        return self._with(length=jnp.asarray(length, jnp.int32))

    def resized(self, slots: int) -> Self:
        """The cache with so many slots a row, the first of them as they were.

        Outside of a trace the arrays given are deleted one after another, so that no more than a layer is held twice.
        """

        def moved(stored):
            new = _resized(stored, slots=slots, layout=self.layout)
            if not isinstance(stored, jax.core.Tracer):
                stored.delete()
            return new

        return self._map(moved)

    def take(self, row: jax.Array, slots: int) -> Self:
        """The first slots of one row, int32 `[]`, as a cache of one row."""

        # Rows that lie on several devices are summed with all but one masked: a slice at a place that is not known
        # when it is compiled would gather all of them first.
        def taken(stored):
            if self.layout is None:
                return jax.lax.dynamic_slice(stored, (row, 0, 0, 0), (1, stored.shape[1], slots, stored.shape[3]))
            own = (jnp.arange(stored.shape[0]) == row)[:, None, None, None]
            kept = jnp.where(own, stored[:, :, :slots], jnp.zeros((), stored.dtype))
            return jnp.sum(kept, axis=0, keepdims=True, dtype=stored.dtype)

        return self._map(taken)._with(length=jax.lax.dynamic_slice(self.length, (row,), (1,)))

    def put(self, row: jax.Array, other: Self) -> Self:
        """With a cache of one row, and of as many slots or fewer, in place of row int32 `[]`."""

        def put(stored, new):
            return jax.lax.dynamic_update_slice(stored, new, (row, 0, 0, 0))

        return self._map(put, other)._with(length=jax.lax.dynamic_update_slice(self.length, other.length, (row,)))

    def follow(self, source: jax.Array, start: jax.Array, count: int) -> Self:
        """With slots `start[b]` to `start[b] + count` of row `source[b]` in those of row b, int32 `[B]` both."""

        def copied(stored):
            _, heads, _, dim = stored.shape
            written = jax.vmap(
                lambda row, at: jax.lax.dynamic_slice(stored, (row, 0, at, 0), (1, heads, count, dim))[0]
            )(source, start)
            return write_rows(stored, written, start, self.layout, self.platform)

        return self._map(copied)

    def _map(self, function: Callable, *others: Self) -> Self:
        return self._with(
            **{
                name: tuple(map(function, getattr(self, name), *(getattr(other, name) for other in others)))
                for name in self.stored
            }
        )

    def _with(self, **changed: Any) -> Self:
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]  # each is a dataclass


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache(Positions):
    """Keys and values of every layer; B rows, S slots, G kv heads, D head dimension.

    Attributes:
      keys, values: one array `[B, G, S, D]` a layer. Heads come before positions so that both products of attention
        are batched over leading axes, which no backend has to transpose.
      length: int32 `[B]`, how many tokens each row has consumed.
      layout: where it lies on a mesh; None is one device.
      platform: of its devices, "cpu", "gpu" or "tpu"; None is the layout's, or the default one.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})
    platform: str | None = dataclasses.field(default=None, metadata={"static": True})

    stored: ClassVar[tuple[str, ...]] = ("keys", "values")
    layer_type: ClassVar[type] = Layer

    @classmethod
    def create(
        cls,
        config: TransformerConfig,
        batch: int,
        slots: int,
        dtype=jnp.float32,
        layout: Layout | None = None,
        platform: str | None = None,
    ) -> KVCache:
        """An empty cache for a model of that dtype."""
        dtype = cache_dtype(dtype, place_of(layout, platform).platform)
        shape = (batch, config.num_kv_heads, slots, config.head_dim)
        # One buffer each: donated arrays must not share memory.
        keys = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
        values = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
        return cls(keys, values, jnp.zeros((batch,), jnp.int32), layout, platform).constrained()

    @property
    def reads_all(self) -> bool:
        return super().reads_all and not is_native(place_of(self.layout, self.platform), self.keys[0])


def place_of(layout: Layout | None, platform: str | None = None) -> Place:
    """Where a cache or a model lies; without a platform it is the layout's, or the default one."""
    return Place(platform or (layout and layout.platform) or default_platform(), layout is None)


def cache_dtype(dtype: Any, platform: str) -> Any:
    """Of the keys and values of a model of that dtype."""
    # XLA's CPU backend has no 16-bit stores: it would widen and narrow a whole buffer around every write.
    return jnp.float32 if platform == "cpu" else dtype


def numbers_only(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[..., D]` with 0 in the place of what is no number in a value, and NaN there in its key.

    The weight of what a query cannot see is 0, but 0 times NaN is NaN: such a value would reach tokens before it. Its
    key, whose score is masked for those, says so in its place. Number by number, which costs a TPU no reduction.
    """
    fit = jnp.isfinite(value)
    return jnp.where(fit, key, jnp.nan), jnp.where(fit, value, 0)


def read_rows(stored: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """A copy of slots `start[b]` to `start[b] + count` of `stored` `[B, G, S, D]`, `start` int32 `[B]`."""

    def of_row(rows, at):
        return jax.lax.dynamic_slice_in_dim(rows, at, count, axis=1)

    return jax.vmap(of_row)(stored, start)


def write_rows(
    stored: jax.Array,
    new: jax.Array,
    start: jax.Array,
    layout: Layout | None = None,
    platform: str | None = None,
) -> jax.Array:
    """Writes `new` `[B, G, T, D]` into `stored` `[B, G, S, D]` at slots `start[b]` to `start[b] + T`.

    Only the new rows move: the rest of the buffer is updated in place when the caller donated it. The caller keeps
    `start + T <= S`: past the end the write would be shifted over good rows in silence.

    Args:
      layout: where the cache lies on a mesh; None is one device.
      platform: of its devices; None is the layout's, or the default one.
    """
    new = new.astype(stored.dtype)
    if place_of(layout, platform).platform != "tpu" or stored.shape[0] > _MOST_UNROLLED:
        return _placed(_scattered(stored, new, start), layout)
    spec = PartitionSpec(None) if layout is None else layout.attention_sharding(stored.shape).spec
    if layout is None or spec[0] is None:
        return _placed(_row_by_row(stored, new, start), layout)
    # Each device writes the rows that it holds: XLA would exchange rows over a mesh for a slice of one of them.
    local = jax.shard_map(
        _row_by_row,
        mesh=layout.mesh,
        in_specs=(spec, layout.attention_sharding(new.shape).spec, PartitionSpec(spec[0])),
        out_specs=spec,
    )
    return local(stored, new, start)


def _scattered(stored: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    if stored.shape[0] == 1:
        return jax.lax.dynamic_update_slice(stored, new, (0, 0, start[0], 0))
    return jax.vmap(lambda rows, row, at: jax.lax.dynamic_update_slice(rows, row, (0, at, 0)))(stored, new, start)


def _row_by_row(stored: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """The same, a slice a row: a TPU runs a scatter as a loop over its rows, with the whole cache in it."""
    turned = stored.shape[3] < _LANES
    if turned:
        # Slots are then the lanes of such a cache: new ones are turned together, where each would be copied by itself.
        new = jax.lax.optimization_barrier(new.swapaxes(2, 3))
    for row in range(stored.shape[0]):
        value = new[row : row + 1]
        stored = jax.lax.dynamic_update_slice(
            stored, value.swapaxes(2, 3) if turned else value, (row, 0, start[row], 0)
        )
    return stored


def _placed(x: jax.Array, layout: Layout | None) -> jax.Array:
    return x if layout is None else layout.attention(x)


@functools.partial(jax.jit, static_argnames=("slots", "layout"))
def _resized(stored, *, slots, layout):
    more = max(0, slots - stored.shape[2])
    stored = jnp.pad(stored[:, :, :slots], ((0, 0), (0, 0), (0, more), (0, 0)))
    return stored if layout is None else layout.attention(stored)

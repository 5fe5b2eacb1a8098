"""Keys and values in 8 bits, with a scale a head and position: half the bytes of a cache in bfloat16."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kljudge_jax.models.attention import attend
from kljudge_jax.models.cache import Positions, numbers_only, place_of, write_rows
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.written_attention import attend_written, kernel_of
from kljudge_jax.parallel.layout import Layout

_LARGEST = 127


class Int8Layer(NamedTuple):
    """One layer of an `Int8Cache`."""

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array
    value_scales: jax.Array
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
    ) -> tuple[jax.Array, Int8Layer]:
        """See `cache.Layer.attend`. New keys and values too are read as they are stored: a token is the same to a pass
        of its own and to one of several."""
        layer = self.write(key, value, positions[:, 0])
        keys, values = layer.keys, layer.values
        key_scale, value_scale = layer.scales
        read: dict[str, Any] = {
            "window": window,
            "softcap": softcap,
            "layout": self.layout,
            "key_scale": key_scale,
            "value_scale": value_scale,
        }
        place = place_of(self.layout, self.platform)
        kernel = kernel_of(query.shape, keys, query.dtype, self.layout, place.platform)
        if kernel is None:
            slots = jnp.arange(keys.shape[2])[None, None]
            mixed = attend(query, keys, values, positions, slots, **read)
        else:
            mixed = attend_written(kernel, query, keys, values, positions[:, 0], **read)
        return mixed, layer

    def write(self, key: jax.Array, value: jax.Array, start: jax.Array) -> Int8Layer:
        """See `cache.Layer.write`."""
        key, value = (x.swapaxes(1, 2) for x in numbers_only(key, value))
        new = [*_quantized(key), *_quantized(value)]
        keys, key_scales, values, value_scales = (
            write_rows(old, _placed(fresh, self.layout), start, self.layout, self.platform)
            for old, fresh in zip((self.keys, self.key_scales, self.values, self.value_scales), new, strict=True)
        )
        return Int8Layer(keys, values, key_scales, value_scales, self.layout, self.platform)

    @property
    def scales(self) -> tuple[jax.Array, jax.Array]:
        """See `cache.Layer.scales`."""
        return self.key_scales[..., 0], self.value_scales[..., 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Cache(Positions):
    """As `KVCache`, quantized.

    Attributes:
      keys, values: int8, one array `[B, G, S, D]` a layer.
      key_scales, value_scales: f32, one array `[B, G, S, 1]` a layer: what the integers are to be multiplied by.
      length: int32 `[B]`, how many tokens each row has consumed.
      layout: where it lies on a mesh; None is one device.
      platform: of its devices, as of a `KVCache`.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    key_scales: tuple[jax.Array, ...]
    value_scales: tuple[jax.Array, ...]
    length: jax.Array
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})
    platform: str | None = dataclasses.field(default=None, metadata={"static": True})

    stored: ClassVar[tuple[str, ...]] = ("keys", "values", "key_scales", "value_scales")
    layer_type: ClassVar[type] = Int8Layer

    @classmethod
    def create(
        cls,
        config: TransformerConfig,
        batch: int,
        slots: int,
        layout: Layout | None = None,
        platform: str | None = None,
    ) -> Int8Cache:
        """An empty cache."""
        shape = (batch, config.num_kv_heads, slots)

        def side(size, dtype):
            return tuple(jnp.zeros((*shape, size), dtype) for _ in range(config.num_layers))

        dim = config.head_dim
        return cls(
            keys=side(dim, jnp.int8),
            values=side(dim, jnp.int8),
            key_scales=side(1, jnp.float32),
            value_scales=side(1, jnp.float32),
            length=jnp.zeros((batch,), jnp.int32),
            layout=layout,
            platform=platform,
        ).constrained()


def _quantized(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values int8 `[..., D]` and their scale f32 `[..., 1]`; NaN in x makes the scale NaN."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / _LARGEST
    scale = jnp.where(jnp.all(jnp.isfinite(wide), axis=-1, keepdims=True), scale, jnp.nan)
    integers = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
    return jnp.where(scale >= 0, integers, 0).astype(jnp.int8), scale


def _placed(x: jax.Array, layout: Layout | None) -> jax.Array:
    return x if layout is None else layout.attention(x)

"""Inside `jax.shard_map`: which arrays are said to differ from device to device."""

from __future__ import annotations

from typing import Any

import jax


def varying_as(tree: Any, like: jax.Array) -> Any:
    """The tree, said to differ from device to device where `like` does.

    What a loop carries has to be, and what a foreign call returns, which is taken to be the same everywhere.
    """
    axes = _varies_over(like)

    def cast(x):
        missing = tuple(sorted(axes - _varies_over(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def result_like(like: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of what a kernel makes of `like`, which differs from device to device where that does."""
    kind: Any = jax.typeof(like)
    kinds: Any = {name: getattr(kind, name) for name in ("manual_axis_type", "vma") if hasattr(kind, name)}
    return jax.ShapeDtypeStruct(shape, dtype, **dict(list(kinds.items())[:1]))


def _varies_over(x: jax.Array) -> frozenset[Any]:
    """The axes of a mesh over which `shard_map` knows an array to vary."""
    kind: Any = jax.typeof(x)
    # JAX 0.10.2 has moved it.
    return frozenset(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)

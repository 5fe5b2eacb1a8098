"""What can be said of any model, ours or another's: what its leaves take, what they are kept as, where they lie."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.kernels.quantize import stored_bits
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.parallel.layout import Layout


def arrays(model: Any) -> list[Any]:
    """The leaves of a model, or of any pytree; a plain number as an array, a PRNG key as its data."""
    return [as_array(leaf) for leaf in jax.tree.leaves(model)]


def as_array(leaf: Any) -> Any:
    """A leaf with a shape and a dtype of NumPy's kind."""
    if not hasattr(leaf, "dtype"):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def parameter_bytes(model: Any) -> int:
    """What all its parameters take."""
    return sum(map(_bytes, arrays(model)))


def is_head(draft: Any) -> bool:
    """Whether a draft is a head of the target: it drafts from the target's states, and cannot read tokens alone."""
    return callable(getattr(draft, "check_target", None))


def head_kind(head: Any) -> str:
    """What a person calls a head: "EAGLE-3"."""
    return getattr(head, "kind", type(head).__name__)


def head_tokens(model: Any) -> int | None:
    """How many tokens a model, or a head, has output rows of its own for; None is all, or none of its own."""
    rows = model.storage.head_rows if isinstance(model, Transformer) else None
    if is_head(model):
        rows = getattr(model.config, "draft_vocab", None)
    return None if rows == model.vocab_size else rows


def precision(model: Any) -> str:
    """What its matrices are kept as, for reports: "int8 (bfloat16)", and "..., 8,192 of 151,936 tokens" where its head
    is cut to those; of a head "int4 (bfloat16), EAGLE-3 over layers 2, 14, 25, 8,192 of 151,936 tokens"; of others' the
    dtype of most bytes."""
    if isinstance(model, Transformer) or is_head(model):
        rows = head_tokens(model)
        said = [str(model.storage)]
        if is_head(model):
            said.append(f"{head_kind(model)} over layers {', '.join(map(str, model.config.layers))}")
        return ", ".join(said + ([] if rows is None else [f"{rows:,} of {model.vocab_size:,} tokens"]))
    return _of_most_bytes(arrays(model), "nothing")


def dtype_of(model: Any) -> jnp.dtype:
    """Of its products: of others' models the floating dtype of most bytes, float32 where no leaf has one."""
    if isinstance(model, Transformer) or is_head(model):
        return jnp.dtype(model.dtype)
    floats = [leaf for leaf in arrays(model) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.dtype(_of_most_bytes(floats, "float32"))


def layout_of(model: Any) -> Layout | None:
    """How a model or a head of ours lies on a mesh; None of others', who know that themselves, and on one device."""
    return model.layout if isinstance(model, Transformer) or is_head(model) else None


def shortest_limit(*models: Any) -> int | None:
    """The most tokens of a row that all of these models take; None is any number."""
    limits = [limit for model in models if (limit := getattr(model, "max_length", None)) is not None]
    return min(limits, default=None)


def _bytes(leaf: Any) -> int:
    return leaf.size * stored_bits(leaf.dtype) // 8


def _of_most_bytes(leaves: list[Any], otherwise: str) -> str:
    sizes: dict[str, int] = {}
    for leaf in leaves:
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + _bytes(leaf)
    return max(sizes, key=lambda name: sizes[name], default=otherwise)

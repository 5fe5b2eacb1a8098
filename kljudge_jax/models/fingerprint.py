"""Which model it is, by weights and configuration, in a few letters: what tells two checkpoints of one name apart."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.models.leaves import as_array
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.parallel.hosts import fetch

_MOST_PLACES = 32  # along an axis


# Fields of a configuration that change nothing of what a model computes.
_NOT_COMPUTED = frozenset({"max_position"})


def fingerprint(model: Any) -> str:
    """The digest of a model's weights, a dash, and 8 hexadecimal digits of its configuration.

    Models of equal weights compute something else with another rope, another epsilon or another number of heads. How
    long a sequence may be is no part of it. Of others' models it is the digest of their weights alone: what else they
    hold need not print alike in two processes.
    """
    weights = weights_digest(model)
    if not isinstance(model, Transformer):
        return weights
    return f"{weights}-{hashlib.sha256(repr(_settings(model.config)).encode()).hexdigest()[:8]}"


def same_model(found: str, asked: str) -> bool:
    """Whether a fingerprint in a file is that of a model: early versions noted the weights' digest alone."""
    return found in (asked, asked.partition("-")[0])


def weights_digest(model: Any) -> str:
    """16 hexadecimal digits of some numbers of every parameter: the same on any mesh, and in float32 and bfloat16.

    Up to 32 x 32 numbers of a matrix count, as bfloat16 has them: training changes some of them, rounding a model to
    bfloat16 none. A quantized matrix is another one; so is one of 4 bits for a platform whose groups are others, and on
    GPUs for another mesh, which may need shorter ones. Of others' models it is of the leaves, by their places in the
    tree: any pytree has one.
    """
    digest = hashlib.sha256()
    for name, leaf in _named(model):
        x = as_array(leaf)
        digest.update(f"{name} {x.shape}".encode() + _kept(np.asarray(_some(x))).tobytes())
    return digest.hexdigest()[:16]


def fingerprints(pair: ModelPair) -> dict[str, str | None]:
    """The digests of both models' weights, without their configurations: what sweeps, datasets and results hold.

    None for a draft that is not there.
    """
    return {"target": weights_digest(pair.target), "draft": None if pair.draft is None else weights_digest(pair.draft)}


def _settings(config: Any) -> list[tuple[str, Any]]:
    """What a configuration says beside its defaults, which fields that later versions add will have in older models."""
    found = []
    for field in dataclasses.fields(config):
        value = _plain(getattr(config, field.name))
        if field.name not in _NOT_COMPUTED and value != _plain(field.default):
            found.append((field.name, value))
    return found


def _plain(value: Any) -> Any:
    """A setting as it prints in any version; numbers as a device has them: a .gguf file holds them in float32."""
    if dataclasses.is_dataclass(value):
        return _settings(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def _named(model: Any) -> list[tuple[str, Any]]:
    if isinstance(model, Transformer):
        return list(parameters(model).items())
    flat, _ = jax.tree_util.tree_flatten_with_path(model)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def _kept(some: np.ndarray) -> np.ndarray:
    """What of the numbers is digested."""
    if jnp.issubdtype(some.dtype, jnp.floating):
        return np.asarray(some.astype(jnp.bfloat16))
    return some.astype("i1") if some.dtype.itemsize == 1 else some  # 4 bits take a byte each, too


def _some(x: Any) -> np.ndarray:
    """The numbers of a parameter that count."""
    places = np.ix_(*(np.linspace(0, n - 1, min(n, _MOST_PLACES)).astype(np.int32) for n in x.shape))
    if _shares_memory(x):
        return np.asarray(x)[places]  # nothing to compile or to copy
    return fetch(_taken(x, places))


def _shares_memory(x: Any) -> bool:
    """Whether it lies in the host's memory, as a whole."""
    return isinstance(x, np.ndarray) or [device.platform for device in x.devices()] == ["cpu"]


@jax.jit
def _taken(x: jax.Array, places: tuple[jax.Array, ...]) -> jax.Array:
    return x[places]

"""Which weights a model has, in a few letters: what tells two checkpoints of one name apart."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.parallel.hosts import fetch

_MOST_PLACES = 32  # along an axis


def fingerprint(model: Transformer) -> str:
    """16 hexadecimal digits of some numbers of every parameter: the same on any mesh, and in float32 and bfloat16.

    Up to 32 x 32 numbers of a matrix count, as bfloat16 has them: training changes some of them, rounding a model to
    bfloat16 none. A quantized matrix is another one; so is one of 4 bits for a platform whose groups are others, and on
    GPUs for another mesh, which may need shorter ones.
    """
    digest = hashlib.sha256()
    for name, x in parameters(model).items():
        some = np.asarray(_some(x))
        whole = np.asarray(some.astype(jnp.bfloat16)) if jnp.issubdtype(x.dtype, jnp.floating) else some.astype("i1")
        digest.update(f"{name} {x.shape}".encode() + whole.tobytes())
    return digest.hexdigest()[:16]


def fingerprints(pair: ModelPair) -> dict[str, str | None]:
    """Of both models; None for a draft that is not there."""
    return {"target": fingerprint(pair.target), "draft": None if pair.draft is None else fingerprint(pair.draft)}


def _some(x: jax.Array) -> np.ndarray:
    """The numbers of a parameter that count."""
    places = np.ix_(*(np.linspace(0, n - 1, min(n, _MOST_PLACES)).astype(np.int32) for n in x.shape))
    if _shares_memory(x):
        return np.asarray(x)[places]  # nothing to compile or to copy
    return fetch(_taken(x, places))


def _shares_memory(x: jax.Array) -> bool:
    """Whether it lies in the host's memory, as a whole."""
    return [device.platform for device in x.devices()] == ["cpu"]


@jax.jit
def _taken(x: jax.Array, places: tuple[jax.Array, ...]) -> jax.Array:
    return x[places]

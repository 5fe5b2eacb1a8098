"""Caches that a TPU reads as far as they are written: the kernel, interpreted, against XLA's product."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kljudge_jax.models import written_attention
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.int8_cache import Int8Cache
from kljudge_jax.parallel.axes import parse_axes
from kljudge_jax.parallel.layout import Layout
from kljudge_jax.parallel.mesh import mesh_from_spec

SLOTS, DIM = 4160, 16
CONFIG = TransformerConfig("llama", 32, 64, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=DIM)
STARTS = [0, 127, 600, SLOTS - 9]


def cache_of(kind, batch=4, layout=None, platform="tpu", slots=SLOTS):
    if kind == "int8":
        return Int8Cache.create(CONFIG, batch, slots, layout, platform)
    return KVCache.create(CONFIG, batch, slots, jnp.float32, layout, platform)


def filled(cache, seed=0):
    """The cache with numbers in all its slots."""
    rng = np.random.default_rng(seed)

    def numbers(x):
        if x.dtype == jnp.int8:
            return jnp.asarray(rng.integers(-127, 128, x.shape), jnp.int8)
        return jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype) * jnp.asarray(
            0.01 if x.shape[-1] == 1 else rng.choice([-1.0, 1.0], x.shape), x.dtype
        )

    names = cache.stored
    return dataclasses.replace(cache, **{name: tuple(map(numbers, getattr(cache, name))) for name in names})


def given(batch=4, length=9, seed=1):
    rng = np.random.default_rng(seed)
    heads = [CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.num_kv_heads]
    return [jnp.asarray(rng.standard_normal((batch, length, n, DIM)), jnp.float32) for n in heads]


def attended(cache, new, starts, **sees):
    """What attention of one layer gives, and the layer's arrays."""
    positions = jnp.asarray(starts, jnp.int32)[:, None] + jnp.arange(new[0].shape[1])[None]

    def attend(cache, *new):
        mixed, layer = cache.layer(0).attend(*new, positions, **sees)
        return mixed, layer[: len(cache.stored)]

    with pltpu.force_tpu_interpret_mode():
        return jax.jit(attend)(cache, *new)


def kernels(cache, new, starts):
    positions = jnp.asarray(starts, jnp.int32)[:, None] + jnp.arange(new[0].shape[1])[None]
    with pltpu.force_tpu_interpret_mode():
        traced = jax.make_jaxpr(lambda cache, *new: cache.layer(0).attend(*new, positions)[0])(cache, *new)
    return str(traced).count("pallas_call")


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize(
    ("length", "sees"), [(1, {}), (9, {"window": 200}), (9, {"softcap": 5.0})], ids=["one", "window", "softcap"]
)
@pytest.mark.first_case
def test_a_long_cache_of_a_tpu_is_read_as_xla_reads_it(kind, length, sees):
    new = given(length=length)
    ours, theirs = (filled(cache_of(kind, platform=platform)) for platform in ("tpu", "gpu"))
    assert (kernels(ours, new, STARTS), kernels(theirs, new, STARTS)) == (1, 0)
    (mixed, layer), (wanted, written) = (attended(cache, new, STARTS, **sees) for cache in (ours, theirs))
    np.testing.assert_allclose(mixed, wanted, atol=2e-6, rtol=2e-5)
    for got, want in zip(layer, written, strict=True):
        np.testing.assert_array_equal(got, want)


def test_short_caches_and_other_platforms_are_read_whole():
    assert cache_of("float32", slots=4032).reads_all and not cache_of("float32").reads_all
    assert cache_of("float32", platform="gpu").reads_all and not cache_of("int8").reads_all
    assert kernels(cache_of("float32", slots=4032), given(), [0] * 4) == 0


# Heads by two devices and rows by the other two; or rows by two, and the queries of a kv head where there is one row.
@pytest.mark.parametrize(
    ("mesh", "kind", "batch"), [("data=2,tensor=2", "float32", 4), ("tensor=4", "int8", 4), ("tensor=4", "float32", 1)]
)
@pytest.mark.first_case
def test_each_device_of_a_mesh_reads_the_rows_and_heads_that_it_holds(mesh, kind, batch):
    layout = Layout.create(mesh_from_spec(mesh), parse_axes(None), CONFIG)
    new, starts = given(batch), STARTS[:batch]
    alone, wanted = filled(cache_of(kind, batch)), attended(filled(cache_of(kind, batch)), new, starts)
    spread = dataclasses.replace(alone, layout=layout, platform="tpu")
    assert kernels(spread, new, starts) == 1
    mixed, layer = attended(spread, new, starts)
    np.testing.assert_allclose(mixed, wanted[0], atol=2e-6, rtol=2e-5)
    np.testing.assert_array_equal(layer[0], wanted[1][0])


@pytest.mark.parametrize(("kind", "bad"), [("float32", np.nan), ("int8", np.inf)])
def test_what_is_no_number_reaches_the_queries_that_see_it_and_no_other(kind, bad):
    cache, (query, key, value) = filled(cache_of(kind, batch=1)), given(batch=1)
    sound, _ = attended(cache, (query, key, value), [1000], window=64)
    # A new value, and what the write before, since rolled back, has left in a slot beyond.
    _, stale = attended(cache, (query, key, value.at[0, 7].set(bad)), [1004], window=64)
    names = cache.stored
    left = dataclasses.replace(cache, **{name: (stale[i], *getattr(cache, name)[1:]) for i, name in enumerate(names)})
    mixed, _ = attended(left, (query, key, value.at[0, 5, 1].set(bad)), [1000], window=64)
    by_head = np.isfinite(mixed[0]).all(-1)  # [T, N]; query heads 2 and 3 read kv head 1
    assert by_head[:5].all() and by_head[:, :2].all() and not by_head[5:, 2:].any()
    np.testing.assert_allclose(mixed[0, :5], sound[0, :5], atol=2e-6, rtol=2e-5)


def test_where_kernels_are_switched_off_xla_reads_all(monkeypatch):
    monkeypatch.setenv("KLJUDGE_NATIVE", "0")
    assert cache_of("float32").reads_all and kernels(cache_of("float32"), given(), [0] * 4) == 0
    shape = jax.ShapeDtypeStruct((8, 8, 8192, 128), jnp.bfloat16)
    assert not written_attention.can_read_written(shape, "gpu")
    monkeypatch.delenv("KLJUDGE_NATIVE")
    assert written_attention.can_read_written(shape, "gpu")


def test_more_queries_than_vmem_holds_are_left_to_xla():
    cache = jax.ShapeDtypeStruct((1, 1, SLOTS, 128), jnp.bfloat16)
    assert written_attention.kernel_of((1, 9, 71, 128), cache, jnp.bfloat16, None, "tpu") is not None
    assert written_attention.kernel_of((1, 128, 71, 128), cache, jnp.bfloat16, None, "tpu") is None

"""The GPU's attention, interpreted operation by operation, against XLA's einsum over the same cache."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from kljudge_jax.kernels import gpu_attention
from kljudge_jax.kernels.gpu_attention import pays, reads_written, written_attention
from kljudge_jax.models.attention import attend
from kljudge_jax.models.cache import KVCache, Layer
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.parallel.placement import Placement

interpreted = functools.partial(written_attention, interpret=True)
CONFIG = TransformerConfig("llama", 64, 64, 64, num_layers=1, num_heads=8, num_kv_heads=4, head_dim=16)


def case(batch, groups, time, share, dim, slots, seed=0, dtype=jnp.bfloat16):
    """Queries `[B, T, N, D]`, and keys and values `[B, G, S, D]`."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, time, groups * share, dim)] + [(batch, groups, slots, dim)] * 2
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def by_kernel(query, keys, values, start, **options):
    batch, time, heads, dim = query.shape
    groups = keys.shape[1]
    grouped = query.reshape(batch, time, groups, heads // groups, dim).swapaxes(1, 2)
    found = interpreted(grouped, keys, values, jnp.asarray(start, jnp.int32), **options)
    return np.asarray(found.swapaxes(1, 2).reshape(query.shape), np.float32)


def by_einsum(query, keys, values, start, **options):
    """In float32, on the same numbers."""
    wide = [x.astype(jnp.float32) for x in (query, keys, values)]
    positions = jnp.asarray(start, jnp.int32)[:, None] + jnp.arange(query.shape[1])[None]
    return np.asarray(attend(*wide, positions, jnp.arange(keys.shape[2])[None, None], **options))


def stale(slots, start, time):
    """Whether no query sees a slot: `[B, 1, S, 1]`."""
    return (jnp.arange(slots)[None] >= jnp.asarray(start)[:, None] + time)[:, None, :, None]


@pytest.mark.parametrize(
    ("shape", "starts", "options"),
    [
        ((2, 2, 1, 4, 64, 256), (0, 255), {"dtype": jnp.float16}),  # a draft's step: its first token, and the last slot
        ((2, 2, 9, 4, 128, 1024), (55, 700), {}),  # a cycle, whose queries end a block of slots and cross one
        ((1, 1, 70, 4, 64, 256), (10,), {}),  # more rows than a program has
        ((1, 2, 100, 2, 16, 256), (100,), {"window": 20}),
        ((2, 2, 5, 3, 32, 256), (100, 3), {"window": 40, "softcap": 2.0}),
        ((1, 1, 20, 4, 256, 128), (77,), {}),  # a wide head, of smaller tiles
        ((3, 64, 2, 1, 16, 128), (1, 40, 126), {"softcap": 5.0}),  # so many heads that none is split
    ],
)
@pytest.mark.first_case
def test_it_is_the_einsum_and_stale_slots_reach_no_query(shape, starts, options):
    options = {"dtype": jnp.bfloat16} | options
    dtype = options.pop("dtype")
    query, keys, values = case(*shape, dtype=dtype)
    empty = stale(shape[5], starts, shape[2])
    found = by_kernel(query, jnp.where(empty, jnp.nan, keys), jnp.where(empty, jnp.nan, values), starts, **options)
    want = by_einsum(query, keys, values, starts, **options)
    # Weights of a softmax are rounded to the cache's dtype before they multiply values.
    np.testing.assert_allclose(found, want, atol=4 * float(jnp.finfo(dtype).eps))


def test_a_key_that_is_no_number_reaches_those_that_see_it_and_none_before():
    query, keys, values = case(1, 2, 6, 2, 16, 128)
    found = by_kernel(query, keys.at[:, :, 73].set(jnp.nan), values, (70,))
    want = by_einsum(query, keys, values, (70,))
    np.testing.assert_allclose(found[:, :3], want[:, :3], atol=0.03)
    assert np.isnan(found[:, 3:]).all()


def test_blocks_that_no_query_sees_are_not_run_through(monkeypatch):
    """A block is asked for by its first slot: those from the window's first to the last query's."""
    from jax.experimental.pallas import triton

    seen, load = [], triton.load

    def watched(ref, **options):
        if "transforms" in dir(ref) and ref.shape == (64, 16):
            at = ref.transforms[-1].indices[0].start
            jax.debug.callback(lambda at: seen.append(int(at)), at)
        return load(ref, **options)

    monkeypatch.setattr(triton, "load", watched)
    query, keys, values = case(1, 1, 3, 2, 16, 1024)
    by_kernel(query, keys, values, (130,))
    jax.effects_barrier()
    assert sorted(set(seen)) == [0, 64, 128]
    seen.clear()
    by_kernel(query, keys, values, (703,), window=50)
    jax.effects_barrier()
    assert sorted(set(seen)) == [640, 704]


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("mesh", [None, "data=2,tensor=2", "tensor=4", "tensor=8"])
def test_a_caches_layer_attends_by_it_on_one_device_and_on_a_mesh(mesh, spare, monkeypatch):
    monkeypatch.setattr(gpu_attention, "_LEAST_BYTES", 0)
    layout = None
    if mesh is not None:
        ways = 8 if mesh == "tensor=8" else 4
        if len(jax.devices()) < ways:
            pytest.skip(f"{ways} devices")
        layout = Placement.parse(mesh, devices=jax.devices()[:ways]).target(CONFIG)
    batch = 4 if spare else 3
    query, keys, values = case(batch, 4, 5, 2, 16, 128)
    new = case(batch, 4, 5, 1, 16, 64, seed=1)[0], case(batch, 4, 5, 1, 16, 64, seed=2)[0]
    start = jnp.asarray([0, 60, 123, 9][:batch])
    positions = start[:, None] + jnp.arange(5)[None]
    calls = []

    def attention(*args, **options):
        calls.append(args[0].shape)
        return interpreted(*args, **options)

    monkeypatch.setattr(gpu_attention, "written_attention", attention)
    # JAX's interpreter of kernels does not say where what it counts with varies.
    monkeypatch.setattr(jax, "shard_map", functools.partial(jax.shard_map, check_vma=False))

    @functools.partial(jax.jit, static_argnums=0)
    def attended(platform, keys, values, *given):
        mixed, layer = Layer(keys, values, layout, platform).attend(*given)
        return mixed, layer.keys, layer.values

    one, other = (attended(platform, keys, values, query, *new, positions) for platform in ("gpu", "cpu"))
    assert len(calls) == 1
    wide = [[np.asarray(x, np.float32) for x in each] for each in (one, other)]
    np.testing.assert_allclose(wide[0][0], wide[1][0], atol=4 * float(jnp.finfo(jnp.bfloat16).eps))
    np.testing.assert_array_equal(wide[0][1:], wide[1][1:])


def test_it_can_be_called_where_arrays_differ_from_device_to_device():
    query, keys, values = case(2, 2, 3, 2, 16, 128)
    start = jnp.asarray([5, 90])
    grouped = query.reshape(2, 3, 2, 2, 16).swapaxes(1, 2)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    rows = PartitionSpec("data")
    kernel = functools.partial(written_attention, interpret=True)
    typed = jax.eval_shape(
        jax.shard_map(kernel, mesh=mesh, in_specs=(rows, rows, rows, rows), out_specs=rows),
        *(grouped, keys, values, start),
    )
    assert typed.shape == grouped.shape


@pytest.mark.parametrize(
    ("platform", "dtype", "dim", "can"),
    [
        ("gpu", jnp.bfloat16, 128, True),
        ("gpu", jnp.float16, 64, True),
        ("gpu", jnp.float32, 128, False),
        ("gpu", jnp.int8, 128, False),
        ("gpu", jnp.bfloat16, 80, False),
        ("cpu", jnp.bfloat16, 128, False),
        ("tpu", jnp.bfloat16, 128, False),
    ],
)
def test_where_it_can_be_called(platform, dtype, dim, can):
    assert reads_written(platform, jnp.dtype(dtype), (1, 4, 64, dim)) == can
    assert not reads_written(platform, jnp.dtype(dtype), (1, 4, 65, dim))
    config = TransformerConfig("llama", 64, 64, 64, num_layers=1, num_heads=8, num_kv_heads=4, head_dim=dim)
    if platform == "gpu" and dtype != jnp.int8:
        assert KVCache.create(config, 1, 64, dtype, platform=platform).reads_all != can


@pytest.mark.parametrize(
    ("capability", "recent"), [("7.5", False), ("8.0", True), ("9.0", True), ("12.0", True), ("gfx942", False)]
)
def test_cards_that_tritons_products_do_not_run_on_keep_the_einsum(capability, recent, monkeypatch):
    card = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [card])
    gpu_attention._is_recent.cache_clear()
    assert reads_written("gpu", jnp.bfloat16, (1, 4, 64, 128)) == recent
    gpu_attention._is_recent.cache_clear()


def test_it_pays_from_a_cache_that_is_felt_beside_the_weights():
    assert pays((1, 8, 1024, 64)) and pays((8, 8, 832, 128))
    assert not pays((1, 8, 512, 64))  # of a model of 1B
    assert not pays((8, 8, 1000, 128))  # blocks of 64 slots

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.models.cache import KVCache, read_rows, write_rows
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.parallel.axes import parse_axes
from kljudge_jax.parallel.layout import Layout
from kljudge_jax.parallel.mesh import mesh_from_spec

CONFIG = TransformerConfig("llama", 32, 16, 24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4)


def test_create_is_empty_and_shares_no_memory():
    cache = KVCache.create(CONFIG, batch=2, slots=7, dtype=jnp.bfloat16)
    assert len(cache.keys) == len(cache.values) == 3
    # A 16-bit model's cache is float32 on CPU, where the tests run: XLA widens a 16-bit buffer around each write there.
    assert cache.keys[0].shape == (2, 2, 7, 4) and cache.keys[0].dtype == jnp.float32
    assert cache.slots == 7 and cache.length.tolist() == [0, 0]
    pointers = {leaf.unsafe_buffer_pointer() for leaf in cache.keys + cache.values}
    assert len(pointers) == 6


def test_donated_cache_is_updated_in_place():
    def write(cache, new):
        return KVCache(tuple(write_rows(k, new, cache.length) for k in cache.keys), cache.values, cache.length + 1)

    write = jax.jit(write, donate_argnums=0)
    cache = KVCache.create(CONFIG, 1, 64)
    before = {leaf.unsafe_buffer_pointer() for leaf in cache.keys}
    cache = write(cache, jnp.ones((1, 2, 1, 4)))
    assert {leaf.unsafe_buffer_pointer() for leaf in cache.keys} == before


def test_rollback_is_a_smaller_length_and_nothing_else():
    cache = KVCache.create(CONFIG, 2, 5)
    back = cache.at_length(np.array([1, 3]))
    assert back.length.dtype == jnp.int32 and back.length.tolist() == [1, 3]
    assert back.keys is cache.keys and back.values is cache.values


def test_write_rows_at_a_start_per_row():
    for batch, starts in ((1, [2]), (3, [0, 2, 4])):
        stored = np.arange(batch * 2 * 6 * 4, dtype=np.float32).reshape(batch, 2, 6, 4)
        new = -np.arange(batch * 2 * 2 * 4, dtype=np.float32).reshape(batch, 2, 2, 4)
        want = stored.copy()
        for row, start in enumerate(starts):
            want[row, :, start : start + 2] = new[row]
        got = jax.jit(write_rows)(jnp.asarray(stored), jnp.asarray(new), jnp.asarray(starts))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dim", [4, 128])
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_tpu_writes_the_same_row_by_row(tokens, dim):
    starts = np.array([0, 127, 128, 300 - tokens], np.int32)
    stored = np.arange(4 * 2 * 300 * dim, dtype=np.float32).reshape(4, 2, 300, dim)
    new = -1 - np.arange(4 * 2 * tokens * dim, dtype=np.float32).reshape(4, 2, tokens, dim)
    found = [jax.jit(write_rows, static_argnums=(3, 4))(stored, new, starts, None, kind) for kind in ("cpu", "tpu")]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("mesh", ["data=2,tensor=2", "tensor=4"])
def test_rows_that_lie_on_several_devices_of_a_tpu_are_written_where_they_lie(mesh):
    layout = Layout.create(mesh_from_spec(mesh), parse_axes(None), CONFIG)
    cache = KVCache.create(CONFIG, 4, 16, layout=layout)
    heads, dim = CONFIG.num_kv_heads, CONFIG.head_dim
    new, start = jnp.ones((4, heads, 2, dim)), jnp.array([0, 3, 9, 14])
    program = jax.jit(lambda *given: write_rows(*given, layout, "tpu")).lower(cache.keys[0], new, start).compile()
    found = program(cache.keys[0], new, start)
    np.testing.assert_array_equal(found, write_rows(jnp.zeros(found.shape), new, start))
    assert "all-gather" not in program.as_text() and found.sharding.is_equivalent_to(cache.keys[0].sharding, 4)


def test_write_rows_casts_to_the_cache():
    stored = jnp.zeros((1, 1, 3, 2), jnp.bfloat16)
    assert write_rows(stored, jnp.ones((1, 1, 1, 2)), jnp.array([1])).dtype == jnp.bfloat16


def test_read_rows_from_a_start_per_row():
    stored = jnp.arange(2 * 2 * 6 * 3).reshape(2, 2, 6, 3)
    got = read_rows(stored, jnp.array([0, 4]), 2)
    np.testing.assert_array_equal(got, jnp.stack([stored[0, :, :2], stored[1, :, 4:]]))

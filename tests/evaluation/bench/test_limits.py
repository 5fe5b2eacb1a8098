"""What passes read and compute, and what the device is measured to reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_heads import IDS, headed_pair
from tiny_pairs import rounded, tiny_model

from kljudge_jax.evaluation.bench import limits
from kljudge_jax.evaluation.bench.limits import Reached, Work, pass_work, slots_read
from kljudge_jax.evaluation.bench.timing import Timing
from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.models import cache as cache_room
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.transformer import parameters


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_work_is_counted_by_hand(model):
    # hidden 16, MLP 24, 2 layers, 4 heads and 2 kv heads of 8, vocabulary 257, a head of its own
    weights = 2 * (16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24 + 2 * 16) + 16 + 16 * 257
    cache = 2 * 2 * 3 * 2 * 64 * 8 * 4
    work = pass_work(model, batch=3, positions=5, slots=64)
    assert work.bytes == 4 * weights + cache
    assert work.flops == 2 * weights * 15 + 4 * 2 * 15 * 4 * 64 * 8


def test_native_attention_reads_what_is_written(model, monkeypatch):
    assert slots_read(model, np.array([10, 20]), 5, 64) == (20 if library().ready else 64)
    monkeypatch.setattr(cache_room, "is_native", lambda *_: False)
    assert slots_read(model, np.array([10, 20]), 5, 64) == 64


def test_a_cache_takes_what_it_takes(model):
    cache = KVCache.create(model.config, 3, 64)
    held = sum(leaf.nbytes for leaf in (*cache.keys, *cache.values))
    assert limits.cache_bytes(model.config, 3, 64, jnp.float32) == held


def test_a_commit_moves_tokens_origins_and_counts():
    assert limits.commit_work(batch=3, draft_length=4) == Work(3 * (5 * 4 * 2 + 5 + 2 * 4), 0)


def test_an_empty_call_is_waited_for_every_time():
    assert len(limits.empty_call().run(None, 3)) == 3


def test_the_floor_is_the_slower_of_the_two():
    reached = Reached(bytes_per_second=100.0, flops_per_second=1000.0)
    assert reached.floor(Work(200, 1000)) == 2.0
    assert reached.floor(Work(200, 5000)) == 5.0
    assert Work(1, 2) + Work(3, 4).times(2) == Work(7, 10)


def test_what_is_reached_is_the_best_way_to_read():
    found = limits.reached(100, [Timing((2.0,)), Timing((1.0,))], Timing((0.5,)))
    assert found.bytes_per_second == 100.0
    assert found.flops_per_second == 2 * limits.matmul_size() ** 3 / 0.5


@pytest.mark.parametrize("axis", [0, 1])
def test_a_read_reads_every_matrix_in_every_repetition(model, axis):
    matrices = [np.asarray(leaf) for leaf in jax.tree.leaves(model) if leaf.ndim == 2]
    assert limits.weight_bytes(model) == sum(m.nbytes for m in matrices)
    total = limits.read(model, axis).run(None, 3)
    np.testing.assert_allclose(total, 3 * sum(m.sum(dtype=np.float64) for m in matrices), rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_read_of_integers_reads_them_and_their_scales(model, bits):
    kept = rounded(model, bits)
    held = [leaf for name, leaf in parameters(kept).items() if leaf.ndim > 1]
    assert limits.weight_bytes(kept) == sum(leaf.nbytes for leaf in held)
    for leaf in held:
        words = limits._in_words(leaf)
        assert words.ndim == 2 and words.nbytes == leaf.nbytes
        assert np.asarray(words).tobytes() == np.asarray(leaf).tobytes()
    for axis in (0, 1):
        assert np.shape(limits.read(kept, axis).run(None, 2)) == ()


def test_a_product_stays_what_it_was(monkeypatch):
    monkeypatch.setattr(limits, "matmul_size", lambda: 16)
    product = limits.matmul(jnp.float32).run(None, 3)
    np.testing.assert_allclose(product, np.full((16, 16), 1 / 16), rtol=1e-5)


def test_a_heads_work_is_that_of_its_parts():
    head = headed_pair().draft
    hidden, rows = 16, len(IDS)
    layer = sum(x.size for x in jax.tree.leaves(head.layers))
    slots, batch = 64, 2
    cache, scores = 2 * 4 * batch * 2 * slots * 8, 4 * batch * 4 * slots * 8
    draft = limits.head_draft_work(head, batch, 4, slots)
    assert draft.bytes == 4 * 4 * rows * hidden + 3 * (4 * layer + cache)
    assert draft.flops == 2 * batch * (4 * rows * hidden + 3 * layer) + 3 * scores
    told = limits.head_observe_work(head, batch, 5, slots)
    assert told.bytes == 4 * (3 * hidden * hidden + layer) + cache
    assert told.flops == 2 * batch * 5 * (3 * hidden * hidden + layer) + 5 * scores

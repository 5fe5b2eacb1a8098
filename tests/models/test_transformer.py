"""Every family against Transformers on torch: the same weights, the same logits, with and without a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hf import FAMILIES, hf_logits

from kljudge_jax.kernels.place import Place
from kljudge_jax.models import cache as cache_room
from kljudge_jax.models import transformer
from kljudge_jax.models.cache import KVCache
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import Transformer, abstract, assemble, parameters
from kljudge_jax.models.weights import SafetensorsFolder, load

LENGTH, CAPACITY = 24, 28
TOLERANCE = 1e-4

# Where a width is one more of what a family is asked anyway: some for every day, with windows and with caps.
_FOR_EVERY_DAY = ("qwen2", "gemma2")
some_families = pytest.mark.parametrize(
    "case",
    [name if name in _FOR_EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
    indirect=True,
    scope="module",
)


@jax.jit
def step(model, tokens, cache=None):
    features, cache = model(tokens, cache)
    return model.logits(features.hidden), cache


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, hf_models):
    """Our model, int32 tokens `[2, T]`, and the logits that Transformers gives them."""
    theirs, folder = hf_models(request.param)
    tokens = np.random.default_rng(1).integers(0, theirs.config.vocab_size, (2, LENGTH)).astype(np.int32)
    want = hf_logits(theirs, tokens)
    assert want.std() > 0.5, "the model says nothing: the test could not fail"
    return load(SafetensorsFolder(folder)), tokens, want


def prefill(model, tokens):
    """A cache that has consumed the first 12 tokens, in chunks of 4: each width compiles once."""
    cache = KVCache.create(model.config, 2, CAPACITY)
    for t in range(0, 12, 4):
        _, cache = step(model, tokens[:, t : t + 4], cache)
    return cache


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=TOLERANCE)


def test_whole_prompt_without_cache(case):
    model, tokens, want = case
    close(step(model, tokens)[0], want)


@some_families
def test_one_token_at_a_time_with_cache(case):
    model, tokens, want = case
    cache = KVCache.create(model.config, 2, CAPACITY)
    for t in range(LENGTH):
        logits, cache = step(model, tokens[:, t : t + 1], cache)
        close(logits[:, 0], want[:, t])
    assert cache.length.tolist() == [LENGTH, LENGTH]


@some_families
def test_a_token_in_two_rows_gives_what_it_gives_in_one(case, monkeypatch):
    model, tokens, _ = case
    random = np.random.default_rng(2)
    shape = (model.config.num_layers, 1, model.config.num_kv_heads, CAPACITY, model.config.head_dim)
    layers = [tuple(random.standard_normal(shape, np.float32)) for _ in range(2)]  # as if 5 tokens had been seen
    cache = KVCache(*layers, np.array([5], np.int32))

    def forward():
        # Traced anew each time: what is replaced below is asked while a program is made.
        return jax.jit(lambda model, tokens, cache: model(tokens, cache))(model, tokens[:1, 5:6], cache)

    monkeypatch.setattr(cache_room, "is_native", lambda *_: False)  # the attention that a GPU computes
    once, stored_once = forward()
    rows = []
    monkeypatch.setattr(transformer, "_duplicates_row", lambda tokens, _: tokens.size == 1)
    monkeypatch.setattr(transformer, "_twice", lambda x: rows.append(x.shape) or jnp.concatenate([x, x], axis=1))
    twice, stored_twice = forward()
    assert len(rows) == 1 + model.config.num_layers  # embeddings, and what each layer's attention mixed
    assert once.hidden.shape == twice.hidden.shape and stored_twice.length.tolist() == [6]
    for a, b in zip(jax.tree.leaves((once, stored_once)), jax.tree.leaves((twice, stored_twice)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_only_a_single_token_on_one_gpu_goes_twice():
    one, two = jnp.zeros((1, 1), jnp.int32), jnp.zeros((2, 1), jnp.int32)
    assert not transformer._duplicates_row(one, Place("cpu")) and not transformer._duplicates_row(one, Place("tpu"))
    assert transformer._duplicates_row(one, Place("gpu"))
    assert not transformer._duplicates_row(two, Place("gpu")) and not transformer._duplicates_row(two.T, Place("gpu"))
    assert not transformer._duplicates_row(one, Place("gpu", local=False))  # spread over a mesh


def test_rollback_forgets_wrong_tokens(case):
    model, tokens, want = case
    wrong = (tokens + 7) % model.config.vocab_size
    logits, cache = step(model, wrong[:, 12:16], prefill(model, tokens))
    assert np.abs(np.asarray(logits) - want[:, 12:16]).max() > 0.1
    logits, cache = step(model, tokens[:, 12:16], cache.at_length(cache.length - 4))
    close(logits, want[:, 12:16])
    logits, _ = step(model, tokens[:, 14:18], cache.at_length(cache.length - 2))
    close(logits, want[:, 14:18])


def test_rows_of_different_lengths(case):
    model, tokens, want = case
    starts = np.array([5, 12])
    chunk = np.stack([tokens[b, s : s + 4] for b, s in enumerate(starts)])
    logits, cache = step(model, chunk, prefill(model, tokens).at_length(starts))
    close(logits, np.stack([want[b, s : s + 4] for b, s in enumerate(starts)]))
    assert cache.length.tolist() == [9, 16]


TINY = TransformerConfig("llama", 32, 16, 24, 2, 4, 2, 4)


def new_model(config):
    return jax.jit(lambda key: Transformer(config, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def model():
    return new_model(TINY)


def test_parameters_and_assemble_are_inverse(model):
    again = assemble(TINY, parameters(model))
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True))
    assert "layers.1.attention.query.weight" in parameters(model)


def test_norm_scales_stay_float32():
    leaves = parameters(abstract(TINY, Storage(jnp.bfloat16)))
    assert {leaf.dtype for name, leaf in leaves.items() if name.endswith(".scale")} == {np.dtype(np.float32)}
    assert {leaf.dtype for name, leaf in leaves.items() if not name.endswith(".scale")} == {np.dtype(jnp.bfloat16)}


def test_bfloat16_stays_near_float32(model):
    want = parameters(abstract(TINY, Storage(jnp.bfloat16)))
    leaves = jax.device_get(parameters(model))
    narrow = assemble(TINY, {name: leaf.astype(want[name].dtype) for name, leaf in leaves.items()})
    tokens = np.arange(8, dtype=np.int32)[None]
    assert jax.eval_shape(narrow, tokens)[0].hidden.dtype == jnp.bfloat16 and narrow.dtype == jnp.bfloat16
    logits, exact = step(narrow, tokens)[0], step(model, tokens)[0]
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(logits) - np.asarray(exact)).max() < 0.1


def test_other_weights_of_the_same_shape_trace_nothing(model):
    traces = []

    @jax.jit
    def forward(model, tokens):
        traces.append(tokens.shape)
        return model(tokens)[0].hidden

    tokens = np.zeros((1, 3), np.int32)
    for other in (model, jax.tree.map(lambda leaf: np.asarray(leaf) + 1, model)):
        forward(other, tokens)
    assert traces == [(1, 3)]


@pytest.mark.parametrize("length", [1, 3])
def test_a_window_is_cut_out_of_a_cache_that_is_much_longer(length, monkeypatch):
    """At the cache's first slots, in its midst and at its end; stale slots that are no number stay unseen."""
    monkeypatch.setattr(cache_room, "is_native", lambda *_: False)
    sizes = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "windows": (4, 0)}
    config, capacity = TransformerConfig("gemma2", 32, 16, 24, **sizes), 64
    model = new_model(config)
    starts = np.array([0, 2, 31, capacity - length], np.int32)
    fresh = np.arange(capacity)[None, None, :, None] < starts[:, None, None, None]
    layers = np.random.default_rng(0).standard_normal((4, 4, 2, capacity, 4), np.float32)
    keys, values = (
        [np.where(fresh, x, np.float32(stale)) for x in layers[i:][:2]] for i, stale in ((0, np.nan), (2, 7))
    )
    tokens = np.arange(4 * length, dtype=np.int32).reshape(4, length)
    found, widths = [], []
    for times in (4, 1000):
        monkeypatch.setattr(cache_room, "_TO_COPY", times)
        compiled = jax.jit(lambda *args: model(*args)).lower(tokens, KVCache(tuple(keys), tuple(values), starts))
        widths.append(f"x{4 + length - 1}xf32>" in compiled.as_text())
        found.append(compiled.compile()(tokens, KVCache(tuple(keys), tuple(values), starts))[0].hidden)
    assert widths[0]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)
    assert np.isfinite(found[0]).all()

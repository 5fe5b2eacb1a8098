"""The DFlash head, against its published forward pass in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_heads import (
    KEPT,
    PROMPTS,
    PublishedDFlash,
    check_against,
    drafts_of,
    pair_of,
    write_dflash_folder,
    write_target,
)

from kljudge_jax.models.attention import attend, attend_block
from kljudge_jax.models.dflash import DFlashHead
from kljudge_jax.models.int8_cache import Int8Cache
from kljudge_jax.models.transformer import parameters


@pytest.fixture(scope="module", params=["qwen3", "llama3"])
def made(request, tmp_path_factory):
    """A target of the family as Transformers has it, and the folders of it and of a head."""
    root = tmp_path_factory.mktemp(request.param)
    target = write_target(root / "target", request.param)
    return target, root / "target", write_dflash_folder(root / "head", bias=request.param == "llama3")


@pytest.mark.parametrize(("length", "chunk"), [(4, 4), (5, 16)])
@pytest.mark.first_case
def test_drafts_are_those_of_the_published_pass(made, length, chunk):
    model, target, head = made
    pair = pair_of(target, head)
    check_against(PublishedDFlash(head, model), model, pair, [0, 2, 4], length, chunk)


def test_the_length_of_a_draft_changes_none_of_its_tokens(made):
    pair = pair_of(*made[1:])
    short, full = (next(drafts_of(pair, PROMPTS, [[0, 0, 0]], length, 4))[1] for length in (2, 5))
    np.testing.assert_array_equal(short.tokens, full.tokens[:, :2])
    np.testing.assert_allclose(short.raw_logits, full.raw_logits[:, :2], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "near"), [({"draft_bits": 8}, 0.05), ({"draft_bits": 4}, 0.5), ({"cache_bits": 8}, 0.05)]
)
@pytest.mark.first_case
def test_quantized_heads_and_caches_are_near_the_whole_ones(made, options, near):
    whole, rounded = pair_of(*made[1:]), pair_of(*made[1:], **options)
    if "cache_bits" in options:
        rounded = dataclasses.replace(rounded, target=whole.target)
        assert isinstance(rounded.draft.init_cache(1, 8), Int8Cache)
    else:
        matrices = [x for name, x in parameters(rounded.draft).items() if name.endswith((".query.weight", "fc.weight"))]
        assert matrices and all(jnp.issubdtype(x.dtype, jnp.integer) for x in matrices)
    (_, exact), (_, found) = (next(drafts_of(pair, PROMPTS, KEPT[:1], 4, 4)) for pair in (whole, rounded))
    error = np.abs(np.asarray(found.raw_logits - exact.raw_logits)).max() / np.abs(np.asarray(exact.raw_logits)).max()
    assert 0 < error < near


@pytest.mark.first_case
def test_bfloat16_is_near_float32(made):
    whole, rounded = (pair_of(*made[1:], dtype=dtype) for dtype in ("float32", "bfloat16"))
    (_, exact), (_, found) = (next(drafts_of(pair, PROMPTS, KEPT[:1], 4, 4)) for pair in (whole, rounded))
    error = np.abs(np.asarray(found.raw_logits - exact.raw_logits)).max() / np.abs(np.asarray(exact.raw_logits)).max()
    assert found.raw_logits.dtype == jnp.float32 and 0 < error < 0.1


def test_a_block_changes_nothing_in_the_cache(made):
    pair = pair_of(*made[1:])
    head = pair.draft
    assert isinstance(head, DFlashHead) and head.vocab_size == 64 and head.max_length is None
    cache = head.init_cache(2, 8)
    states = tuple(jax.random.normal(jax.random.key(i), (2, 5, 32)) for i in range(3))
    cache = head.observe(states, cache)
    assert cache.length.tolist() == [5, 5] and len(cache.keys) == 2
    # A block that reaches past the last slot: 5 + 6 of 8.
    block = head(pair.target.embed(jnp.full((2, 6), 63)), cache)
    assert block.shape == (2, 6, 32) and bool(jnp.all(jnp.isfinite(block)))
    longer = head.observe(states, head.init_cache(2, 64))
    np.testing.assert_allclose(block, head(pair.target.embed(jnp.full((2, 6), 63)), longer), atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_block_reads_what_a_query_after_it_would(scaled):
    # Attention by positions, each query of which stands at the block's end, over context and block side by side.
    keys = jax.random.split(jax.random.key(1), 7)
    query = jax.random.normal(keys[0], (2, 3, 4, 8))
    key, value = (jax.random.normal(k, (2, 3, 2, 8)) for k in keys[1:3])
    stored_keys, stored_values = (jax.random.normal(k, (2, 2, 10, 8)) for k in keys[3:5])
    scales = tuple(jax.random.uniform(k, (2, 2, 10)) for k in keys[5:]) if scaled else None
    length = jnp.asarray([7, 2])
    found = attend_block(query, key, value, stored_keys, stored_values, length, scales=scales)
    if scales is not None:
        stored_keys, stored_values = stored_keys * scales[0][..., None], stored_values * scales[1][..., None]
    both = [jnp.concatenate([a, b.swapaxes(1, 2)], axis=2) for a, b in ((stored_keys, key), (stored_values, value))]
    slots = jnp.where(jnp.arange(13)[None] < 10, jnp.arange(13)[None], length[:, None] + jnp.arange(-10, 3)[None])
    hidden = (jnp.arange(13)[None] < 10) & (slots >= length[:, None])
    slots = jnp.where(hidden, 99, slots)[:, None]
    expected = attend(query, *both, jnp.broadcast_to(length[:, None] + 2, (2, 3)), slots)
    np.testing.assert_allclose(found, expected, atol=1e-5)

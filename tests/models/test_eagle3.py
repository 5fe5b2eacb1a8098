"""The EAGLE-3 head, against its published forward pass in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_heads import (
    KEPT,
    PROMPTS,
    PublishedEagle3,
    check_against,
    drafts_of,
    pair_of,
    write_eagle3_folder,
    write_target,
)

from kljudge_jax.models.eagle3 import default_layers
from kljudge_jax.models.int8_cache import Int8Cache
from kljudge_jax.models.transformer import parameters

SOME = [40, 3, 17, 5, 63, 1, 22, 9]  # in an order of their own


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Targets by family: as Transformers has it, and its folder."""
    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = write_target(folder, family), folder
        return made[family]

    return get


# Blocks 1, 2, 2 of 6 layers are those of 2, n/2 and n - 3.
@pytest.mark.parametrize(
    ("family", "options", "blocks"),
    [
        ("llama3", {"ids": SOME}, [1, 2, 2]),
        ("qwen2", {"bias": True, "norm_before_residual": True}, [1, 2, 2]),
        ("qwen3", {"ids": SOME, "embedding": False, "norm_before_residual": True}, [1, 2, 2]),
        ("llama3", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3, 4]}}, [0, 3, 4]),
        ("smollm2", {"eagle_aux_hidden_state_layer_ids": [1, 4, 5], "embedding": False}, [0, 3, 4]),
    ],
    ids=["llama", "qwen2.5", "qwen3", "blocks-named", "tied-layers-named"],
)
@pytest.mark.first_case
def test_drafts_are_those_of_the_published_pass(targets, tmp_path, family, options, blocks):
    model, folder = targets(family)
    head = write_eagle3_folder(tmp_path / "head", **options)
    check_against(PublishedEagle3(head, model), model, pair_of(folder, head), blocks)


def test_prompts_may_come_in_one_piece(targets, tmp_path):
    model, folder = targets("llama3")
    head = write_eagle3_folder(tmp_path / "head", ids=SOME)
    check_against(PublishedEagle3(head, model), model, pair_of(folder, head), [1, 2, 2], length=2, chunk=16)


@pytest.mark.parametrize(
    ("options", "near"), [({"draft_bits": 8}, 0.05), ({"draft_bits": 4}, 0.5), ({"dtype": "bfloat16"}, 0.2)]
)
@pytest.mark.first_case
def test_rounded_heads_are_near_the_whole_one(targets, tmp_path, options, near):
    _, folder = targets("llama3")
    head = write_eagle3_folder(tmp_path / "head")
    whole, rounded = pair_of(folder, head), pair_of(folder, head, **options)
    if "draft_bits" in options:
        matrices = [x for name, x in parameters(rounded.draft).items() if name in ("fc.weight", "head.weight")]
        assert len(matrices) == 2 and all(jnp.issubdtype(x.dtype, jnp.integer) for x in matrices)
    # Of the first token of a draft: later ones may follow another.
    (_, exact), (_, found) = (next(drafts_of(pair, PROMPTS, KEPT[:1], 4, 4)) for pair in (whole, rounded))
    error = np.abs(np.asarray(found.raw_logits - exact.raw_logits))[:, 0].max()
    assert 0 < error < near * np.abs(np.asarray(exact.raw_logits)).max()


@pytest.mark.slow
def test_its_cache_may_be_of_8_bits(targets, tmp_path):
    _, folder = targets("llama3")
    pair = pair_of(folder, write_eagle3_folder(tmp_path / "head"), cache_bits=8)
    assert isinstance(pair.draft.init_cache(1, 8), Int8Cache)
    assert all(bool(jnp.all(jnp.isfinite(draft.raw_logits))) for _, draft in drafts_of(pair, PROMPTS, KEPT[:2], 4, 4))


def test_a_step_after_the_other_is_one_pass(targets, tmp_path):
    _, folder = targets("qwen2")
    head = pair_of(folder, write_eagle3_folder(tmp_path / "head", bias=True)).draft
    features, embeddings = (jax.random.normal(jax.random.key(i), (2, 5, 32)) for i in range(2))
    passed = jax.jit(lambda head, *given: head(*given))
    whole, _ = passed(head, features, embeddings, head.init_cache(2, 8))
    cache = head.init_cache(2, 8)
    for i in range(5):
        states, cache = passed(head, features[:, i : i + 1], embeddings[:, i : i + 1], cache)
        np.testing.assert_allclose(states, whole[:, i : i + 1], atol=1e-5)


def test_layers_by_default_are_the_published_ones():
    assert default_layers(32) == (2, 16, 29) and default_layers(28) == (2, 14, 25)

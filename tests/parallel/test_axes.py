"""The table of logical axes, and the words that change it."""

import pytest
from spread_pairs import FAMILIES
from tiny_pairs import tiny_config

from kljudge_jax.errors import InputError
from kljudge_jax.models.transformer import abstract, parameters
from kljudge_jax.parallel.axes import BATCH, LOGICAL, RULES, parameter_axes, parse_axes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_model_has_axes_and_no_norm_has(family):
    for name, leaf in parameters(abstract(tiny_config(**FAMILIES[family]))).items():
        axes = parameter_axes(name, leaf.ndim)
        assert len(axes) == leaf.ndim
        assert all(axes) if leaf.ndim == 2 else axes in ((None,), ("heads",), ("kv_heads",)), name


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("layers.11.attention.query.weight", ("heads", "embed")),
        ("layers.0.attention.key.bias", ("kv_heads",)),
        ("layers.0.attention.out.bias", (None,)),
        ("layers.0.attention.query_norm.scale", (None,)),
        ("layers.0.mlp.down.weight", ("embed", "mlp")),
        ("embedding.table", ("vocab", "embed")),
        ("final_norm.scale", (None,)),
    ],
)
def test_a_parameter_has_the_axes_of_its_matrix(name, axes):
    assert parameter_axes(name, len(axes)) == axes


def test_words_change_the_table():
    assert parse_axes(None) == parse_axes("") == RULES
    assert parse_axes("vocab=none") == RULES | {"vocab": ()}
    assert parse_axes("replicated") == {axis: RULES[axis] if axis == BATCH else () for axis in LOGICAL}
    assert parse_axes("replicated,vocab=tensor")["vocab"] == ("tensor",)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vocabulary=tensor", "of batch, heads, kv_heads"),
        ("vocab=pipeline", "on data, fsdp, tensor"),
        ("vocab", "write replicated, or axes"),
        ("vocab=none,vocab=tensor", "names vocab twice"),
        ("mlp=tensor+tensor", "twice"),
        ("vocab=data", "maps both batch and vocab to data, and the logits have both"),
        ("embed=tensor", "maps both embed and heads to tensor, and the matrices attention.query have both"),
        ("batch=data+tensor", "maps both batch and heads to tensor, and the queries have both"),
    ],
)
def test_words_that_mean_nothing_and_collisions_are_refused_by_name(word, message):
    with pytest.raises(InputError, match=message):
        parse_axes(word)

"""The table of logical axes, and the words that change it."""

import re
from pathlib import Path

import pytest
from spread_pairs import FAMILIES
from tiny_pairs import tiny_config

import kljudge_jax
from kljudge_jax.cli import main
from kljudge_jax.errors import InputError
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import abstract, parameters
from kljudge_jax.parallel import axes
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
        ("layers.0.mlp.up.scale", ("mlp",)),  # one an output
        ("layers.0.mlp.down.scale", (None,)),
        ("embedding.scale", ("vocab",)),
        ("final_norm.scale", (None,)),
    ],
)
def test_a_parameter_has_the_axes_of_its_matrix(name, axes):
    assert parameter_axes(name, len(axes)) == axes


@pytest.mark.parametrize("part", ["weight", "scale"])
@pytest.mark.parametrize(
    ("order", "axes"),
    [("kgo", (None, "embed", "mlp")), ("gok", ("embed", "mlp", None)), ("gko", ("embed", None, "mlp"))],
)
def test_groups_of_columns_have_the_axes_of_their_order(part, order, axes):
    assert parameter_axes(f"layers.0.mlp.up.{part}", 3, order) == axes


def test_words_change_the_table():
    assert parse_axes(None) == parse_axes("") == RULES
    assert parse_axes("vocab=none") == RULES | {"vocab": ()}
    assert parse_axes("replicated") == {axis: RULES[axis] if axis == BATCH else () for axis in LOGICAL}
    assert parse_axes("replicated,vocab=tensor")["vocab"] == ("tensor",)


def test_every_word_of_the_documentation_is_one(capsys):
    """Those of the help, of docstrings, of the error that says what to write, and of the pages."""
    root = Path(kljudge_jax.__file__).parent
    with pytest.raises(InputError) as refused:
        parse_axes("?")
    assert main(["sweep", "--help"]) == 0
    texts = [capsys.readouterr().out, axes.parse_axes.__doc__, ModelPair.from_pretrained.__doc__]
    texts += [path.read_text(encoding="utf-8") for path in (root.parent / "docs" / "pages").glob("*.md")]
    text = " ".join(" ".join(texts).split())
    words = {*re.findall(rf"(?:replicated,)?(?:\b(?:{'|'.join(LOGICAL)})=[a-z+]+,?)+", text)}
    words |= {word.strip() for word in str(refused.value).split(" as in ")[1].split(", of ")[0].split(", ")}
    assert {"vocab=none,batch=data+fsdp", "replicated,vocab=tensor", "kv_heads=tensor"} <= words
    for word in words:
        parse_axes(word.rstrip(","))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vocabulary=tensor", "of batch, heads, kv_heads"),
        ("vocab=pipeline", "on data, fsdp, tensor"),
        ("vocab", "write replicated, or axes"),
        ("vocab=none,vocab=tensor", "names vocab twice"),
        ("mlp=tensor+tensor", "twice"),
        ("heads=none", "maps kv_heads to tensor and heads not"),
        ("vocab=data", "maps both batch and vocab to data, and the logits have both"),
        ("embed=tensor", "maps both embed and heads to tensor, and the matrices attention.query have both"),
        ("batch=data+tensor", "maps both batch and heads to tensor, and the queries have both"),
    ],
)
def test_words_that_mean_nothing_and_collisions_are_refused_by_name(word, message):
    with pytest.raises(InputError, match=message):
        parse_axes(word)

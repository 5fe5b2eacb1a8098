"""Heads that are cut to some tokens: the whole head's own rows, -inf elsewhere, and lists that cannot be."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from spread_pairs import spread
from tiny_gguf import write_model
from tiny_hf import make_hf_model, make_tokenizer
from tiny_pairs import answer, in_bfloat16, rounded, tiny_model, tokens_of

import kljudge_jax as kj
from kljudge_jax.core.protocols import Models
from kljudge_jax.errors import InputError
from kljudge_jax.generation.costs import bytes_read
from kljudge_jax.kernels.product import tiled_where_native
from kljudge_jax.kernels.quantize import (
    COLUMNS,
    INT4,
    INT8,
    INT8_PER_OUTPUT,
    Scheme,
    dequantize,
    quantize,
    some_outputs,
)
from kljudge_jax.models.draft_vocab import cut_head, head_rows, read_draft_vocab
from kljudge_jax.models.gguf import GGUFFile
from kljudge_jax.models.leaves import parameter_bytes, precision
from kljudge_jax.models.orbax import save
from kljudge_jax.models.transformer import parameters
from kljudge_jax.models.weights import load, storage_of

IDS = (0, 3, 4, 17, 100, 255, 256)
STATES = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)

MODELS = {
    "own": lambda: tiny_model(),
    "tied": lambda: tiny_model(tied_head=True),
    "softcap": lambda: tiny_model(final_softcap=3.0),
    "own in bfloat16": lambda: in_bfloat16(tiny_model()),
    "own in 8 bits": lambda: rounded(tiny_model()),
    "tied in 8 bits": lambda: rounded(tiny_model(tied_head=True)),
    "tied in 4 bits": lambda: rounded(tiny_model(tied_head=True), 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_its_logits_are_the_whole_heads_and_none_elsewhere(name):
    model = MODELS[name]()
    cut = cut_head(model, IDS)
    logits = jax.jit(lambda model, states: model.logits(states))
    states = jnp.asarray(STATES, model.dtype)
    whole, found = (np.asarray(logits(each, states)) for each in (model, cut))
    assert found.shape == whole.shape and found.dtype == np.float32
    others = np.setdiff1d(np.arange(whole.shape[-1]), IDS)
    assert np.isneginf(found[..., others]).all()
    np.testing.assert_allclose(found[..., IDS], whole[..., IDS], rtol=0, atol=1e-6)
    # What a token reads: the rows and their ids, and of no table.
    table = parameter_bytes(model.embedding if model.head is None else model.head)
    assert bytes_read(cut) == bytes_read(model) - table + parameter_bytes(cut.head.rows) + 4 * len(IDS)
    assert parameter_bytes(cut.head.rows) <= 16 / 257 * table + 16 * 12  # up to a whole tile of 16
    assert precision(cut) == f"{model.storage}, 7 of 257 tokens"


@pytest.mark.parametrize(
    "scheme",
    [
        *(INT8, INT4, Scheme(4, True), Scheme(5), Scheme(6), INT8_PER_OUTPUT),
        *(Scheme(4, group=COLUMNS, order="kgo"), Scheme(4, group=64, order="gok"), Scheme(4, True, COLUMNS, "gok")),
    ],
    ids=str,
)
@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
def test_rows_are_picked_and_not_rounded_again(scheme, tiled):
    if tiled and scheme.group is not None:
        return
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(37, 128)), jnp.float32)
    whole = quantize(weight, scheme)
    if tiled:
        whole = tiled_where_native(whole)
        if not whole.tiled:
            pytest.skip("no native products here")
    at = jnp.array([0, 5, 16, 17, 36])
    some = some_outputs(whole, at)
    assert some.shape == (5, 128) and some.scheme == scheme and some.values.dtype == whole.values.dtype
    np.testing.assert_array_equal(dequantize(some, jnp.float32), dequantize(whole, jnp.float32)[at])


@pytest.mark.parametrize("family", ["llama2", "smollm2"], ids=["own head", "tied head"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_files_bits_are_kept(tmp_path, family, kind):
    model = make_hf_model(family, intermediate_size=64)
    file = GGUFFile(write_model(tmp_path / "tiny.gguf", model, GGMLQuantizationType[kind]))
    whole = load(file, storage_of(file, np.float32, "file", None))
    ids = list(range(0, whole.vocab_size, 3))
    cut = cut_head(whole, ids)
    states = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, whole.config.hidden_size)), jnp.float32)
    found, wanted = (np.asarray(model.logits(states)) for model in (cut, whole))
    np.testing.assert_allclose(found[..., ids], wanted[..., ids], rtol=0, atol=1e-6)
    assert cut.head.rows.scheme == (whole.embedding if whole.head is None else whole.head).scheme is not None
    assert np.isneginf(found).sum() == 2 * (whole.vocab_size - len(ids))


def test_a_draft_proposes_from_its_list_alone_and_lossless_rules_stay_lossless(pair):
    listed = pair.with_draft_vocab(range(0, 257, 2))
    plain = answer(pair, None)
    exact = answer(listed, "exact", trace=True)
    assert tokens_of(exact) == tokens_of(plain) and exact.stats.failed == 0
    drafted = [t for row, origin in zip(tokens_of(exact), exact.origin, strict=True)
               for t, o in zip(row, origin, strict=True) if o == "draft"]  # fmt: skip
    assert drafted and not any(token % 2 for token in drafted)
    judged = answer(listed, kj.KLJudge(3.0, confidence=1.0), trace=True)
    assert judged.stats.relaxed > 0 == judged.stats.failed
    assert any(np.isfinite(row).any() for row in judged.kl)


def test_on_a_mesh_every_device_has_the_rows(pair):
    listed = spread(pair, "data=2,tensor=4").with_draft_vocab(IDS)
    rows = parameters(listed.draft)["head.rows.weight"]
    assert len(rows.devices()) == 8 and rows.addressable_shards[0].data.shape == rows.shape
    alone = pair.with_draft_vocab(IDS)
    assert tokens_of(answer(listed, "exact")) == tokens_of(answer(alone, "exact"))


def test_a_cut_model_traces_inside_shard_map(pair):
    draft = pair.with_draft_vocab(IDS).draft
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jax.shard_map(
        lambda model, states: model.logits(states),
        mesh=mesh,
        in_specs=(jax.P(), jax.P("data")),
        out_specs=jax.P("data"),
    )
    np.testing.assert_array_equal(jax.jit(run)(draft, jnp.asarray(STATES)), draft.logits(jnp.asarray(STATES)))


def test_what_ends_a_text_is_added_with_a_word(pair, caplog):
    ending = dataclasses.replace(pair, eos=(5, 9))
    with caplog.at_level(logging.WARNING, logger="kljudge_jax"):
        listed = ending.with_draft_vocab([7, 9])
    assert np.asarray(listed.draft.head.ids[...]).tolist() == [5, 7, 9]
    assert "lacks what ends a text (5): added" in caplog.text


@pytest.fixture
def folders(tmp_path):
    for name in ("target", "draft"):
        make_hf_model("llama2", vocab_size=66).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path / "target", tmp_path / "draft"


def test_a_list_in_a_file(folders, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("# most frequent first\n9\n\n3  # a comment\n1\n")
    assert read_draft_vocab(ids) == [9, 3, 1]
    pair = kj.ModelPair.from_pretrained(*folders, draft_vocab=str(ids), dtype="float32")
    assert np.asarray(pair.draft.head.ids[...]).tolist() == [1, 3, 9]
    assert pair.precision == "float32, draft float32, 3 of 66 tokens"
    twice = kj.ModelPair.from_pretrained(*folders, draft_vocab=np.array([9, 3, 1]), dtype="float32")
    for one, other in zip(jax.tree.leaves(pair), jax.tree.leaves(twice), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nowhere.txt", "nowhere.txt: No such file or directory: name a text file with one token id a line"),
        ([], "draft_vocab has no ids: give"),
        ([1, 1.5, True, "x"], "no whole numbers .place 1 is 1.5; place 2 is True; place 3 is 'x'."),
        ([1, 66, -1], "ids outside the vocabulary of 66 .66 at place 1; -1 at place 2."),
        ([4, 2, 4], "ids that stand there twice .4 at place 0 and place 2."),
        (7, "the path of a file or a sequence of token ids, not 7"),
        ([9, "x", 70, 9], "no whole numbers .*, and ids outside .*, and ids that stand there twice"),
        (list(range(70, 80)), "72 at place 2; and 7 more"),
    ],
)
def test_lists_that_cannot_be_are_refused_all_at_once(folders, given, says):
    with pytest.raises(InputError, match=says):
        kj.ModelPair.from_pretrained(*folders, draft_vocab=given)


def test_what_has_no_head_to_cut_is_refused(folders, pair, tmp_path):
    with pytest.raises(InputError, match="draft_vocab is of a draft, and there is none: name it"):
        kj.ModelPair.from_pretrained(folders[0], draft_vocab=[1])
    with pytest.raises(InputError, match="draft_vocab is of a draft, and there is none: name it"):
        dataclasses.replace(pair, draft=None).with_draft_vocab([1])
    listed = pair.with_draft_vocab(IDS)
    with pytest.raises(InputError, match="cut to some tokens already"):
        listed.with_draft_vocab([1])
    with pytest.raises(InputError, match=r"cuts the head of a kljudge_jax\.Transformer, and the draft is a Models"):
        cut_head(Models(pair.target), IDS)
    with pytest.raises(InputError, match="cut to some tokens cannot be saved"):
        save(tmp_path / "saved", listed.draft)
    binary = tmp_path / "ids.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"ids.bin: is no text"):
        read_draft_vocab(binary)


def test_a_number_of_rows():
    assert (head_rows(None, 10), head_rows(4, 10), head_rows([1, 2], 10)) == (None, 4, 2)
    for wrong in (0, 11, True):
        with pytest.raises(InputError, match="a list of tokens or how many, from 1 to 10"):
            head_rows(wrong, 10)

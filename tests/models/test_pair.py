"""Target and draft together: one tokenizer, one vocabulary, one pytree."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hf import hf_logits, make_hf_model, make_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.models import pair as pairs
from kljudge_jax.models import shapes, shipped
from kljudge_jax.models.manifest import write_manifest
from kljudge_jax.models.orbax import save
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import parameters
from kljudge_jax.models.weights import SafetensorsFolder, load, resolve_dtype


@pytest.fixture
def folders(tmp_path):
    """Target and draft folders, the target's vocabulary padded to 70 rows and the draft's to 66, of 64 tokens."""
    for name, rows in (("target", 70), ("draft", 66)):
        make_hf_model("smollm2" if name == "draft" else "llama2", vocab_size=rows).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path / "target", tmp_path / "draft"


def test_padded_vocabularies_are_cut_to_the_common_part(folders, tmp_path):
    target, draft = folders
    pair = ModelPair.from_pretrained(target, draft, dtype="float32")
    assert pair.target.config.vocab_size == pair.draft.config.vocab_size == 66
    tokens = np.arange(7, dtype=np.int32)[None]
    features, _ = jax.jit(lambda m, t: m(t))(pair.target, tokens)
    want = hf_logits(make_hf_model("llama2", vocab_size=70), tokens)[..., :66]
    np.testing.assert_allclose(pair.target.logits(features.hidden), want, rtol=0, atol=1e-4)
    assert pair.eos == (1,) and pair.tokenizer.encode("w9", add_special_tokens=False) == [9]
    assert (pair.target_name, pair.draft_name) == (str(target), str(draft))


def test_a_target_alone_keeps_its_vocabulary(folders):
    pair = ModelPair.from_pretrained(str(folders[0]))
    assert pair.draft is None and pair.target.config.vocab_size == 70


def test_different_tokenizers_are_refused(folders):
    make_tokenizer(specials=("<s>", "</s>", "x")).save_pretrained(folders[1])
    with pytest.raises(InputError, match=r"different tokenizers.*id 2 is 'w2' and 'x'"):
        ModelPair.from_pretrained(*folders, dtype="float32")


def test_one_tokenizer_alone_cannot_be_compared(folders):
    for file in folders[1].glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"draft has no tokenizer to compare"):
        ModelPair.from_pretrained(*folders, dtype="float32")
    given = make_tokenizer()
    assert ModelPair.from_pretrained(*folders, tokenizer=given).tokenizer is given
    for file in folders[0].glob("tokenizer*"):
        file.unlink()
    bare = ModelPair.from_pretrained(*folders, dtype="float32")
    assert bare.tokenizer is None and bare.eos == (1,)
    with pytest.raises(InputError, match="target has 70 tokens, but its tokenizer has token 70"):
        ModelPair.from_pretrained(*folders, tokenizer=make_tokenizer(words=90))


def test_a_tokenizer_by_its_place(folders, tmp_path):
    make_tokenizer(template="{{ messages }}").save_pretrained(tmp_path / "tokenizer")
    pair = ModelPair.from_pretrained(*folders, tokenizer=tmp_path / "tokenizer")
    assert pair.tokenizer.chat_template == "{{ messages }}"


def test_a_tokenizer_too_large_for_its_model_is_refused(folders):
    make_tokenizer(words=68).save_pretrained(folders[0])
    make_tokenizer(words=68).save_pretrained(folders[1])
    with pytest.raises(InputError, match="draft has 66 tokens, but its tokenizer has token 66"):
        ModelPair.from_pretrained(*folders, dtype="float32")


def test_end_of_text_ids(folders):
    (folders[0] / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1, 69]}))
    assert ModelPair.from_pretrained(*folders).eos == (7, 1)  # 69 is padding that the draft lacks
    for name in ("generation_config.json", "config.json"):
        content = json.loads((folders[0] / name).read_text())
        (folders[0] / name).write_text(json.dumps(content | {"eos_token_id": None}))
    assert ModelPair.from_pretrained(folders[0]).eos == (1,)  # the tokenizer's


def test_dtypes(folders):
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(ModelPair.from_pretrained(*folders, dtype="bfloat16"))}
    assert dtypes == {"bfloat16", "float32"}  # float32: the norm scales
    assert ModelPair.from_pretrained(folders[0], dtype="auto").target.dtype == resolve_dtype("auto")
    with pytest.raises(InputError, match="dtype 'int4' is not supported"):
        ModelPair.from_pretrained(folders[0], dtype="int4")


def test_revisions_go_to_the_hub(folders, monkeypatch):
    asked = []

    def snapshot_download(name, revision=None, **_):
        asked.append((name, revision))
        return str(folders[0] if name == "maker/target" else folders[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pair = ModelPair.from_pretrained("maker/target", "maker/draft", revision="v1", draft_revision="v2")
    assert asked == [("maker/target", "v1"), ("maker/draft", "v2")]
    assert (pair.target_name, pair.draft_name) == ("maker/target", "maker/draft")


def test_a_pair_is_a_pytree_of_its_parameters(folders):
    pair = ModelPair.from_pretrained(*folders, dtype="float32")
    count = len(parameters(pair.target)) + len(parameters(pair.draft))
    leaves, structure = jax.tree.flatten(pair)
    assert len(leaves) == count and all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert again.tokenizer is pair.tokenizer and again.eos == pair.eos
    hash(structure)
    jax.tree.unflatten(structure, [None] * count)

    traces = []

    @jax.jit
    def first_logit(pair, tokens):
        traces.append(1)
        return pair.target.logits(pair.target(tokens)[0].hidden)[0, 0, 0]

    tokens = jnp.zeros((1, 2), jnp.int32)
    one, other = first_logit(pair, tokens), first_logit(jax.tree.map(lambda leaf: 2 * leaf, pair), tokens)
    assert one != other and len(traces) == 1


def test_the_constructor_refuses_what_was_not_aligned(folders):
    target, draft = (load(SafetensorsFolder(folder)) for folder in folders)
    with pytest.raises(InputError, match="the target has 70 tokens and the draft 66"):
        ModelPair(target, draft)
    assert ModelPair(target, tokenizer=make_tokenizer()).eos == (1,)
    assert ModelPair(target).eos == () and ModelPair(target, eos=(4,)).eos == (4,)


def test_a_mesh_spreads_the_parameters(folders):
    pair = ModelPair.from_pretrained(*folders, dtype="float32", mesh="data=2,tensor=4")
    weight = parameters(pair.target)["layers.0.mlp.up.weight"]
    assert len(weight.devices()) == 8 and weight.addressable_shards[0].data.shape == (12, 32)
    alone = ModelPair.from_pretrained(*folders, dtype="float32")
    for one, other in zip(jax.tree.leaves(pair), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_formats(folders, tmp_path):
    save(tmp_path / "ours", load(SafetensorsFolder(folders[1])), make_tokenizer(), (1,))
    pair = ModelPair.from_pretrained(folders[0], tmp_path / "ours")
    assert pair.draft.config.vocab_size == 66


def test_the_embedded_pair(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "kljudge_jax" / "models" / "shipped.py"))
    with pytest.raises(InputError, match=re.escape("no embedded pair: name two models")):
        ModelPair.embedded()
    for place in ("checkpoints", "kljudge_jax/checkpoints"):  # a checkout, a wheel
        for folder in folders:
            model = load(SafetensorsFolder(folder), vocab_size=66)
            save(tmp_path / place / folder.name, model, make_tokenizer(), (1,))
        with pytest.raises(InputError, match="SHA256SUMS"):
            ModelPair.embedded()
        write_manifest(tmp_path / place, ("target", "draft"))
        pair = ModelPair.embedded(dtype="bfloat16")
        assert pair.draft.dtype == jnp.bfloat16 and pair.eos == (1,)
        assert (pair.target_name, pair.draft_name) == ("embedded target", "embedded draft")
        with pytest.raises(InputError, match="drafts embedded and embedded:head, not embedded:tail"):
            ModelPair.embedded(draft="embedded:tail")
        own = ModelPair.embedded(draft=folders[1])
        assert own.draft is not None and own.draft_name == str(folders[1])
        assert ModelPair.embedded(draft=None).draft_name == "none"
        shutil.rmtree(tmp_path / place)


def test_a_pair_says_what_it_is_kept_as(folders):
    def precision(**options):
        return ModelPair.from_pretrained(*folders, **({"dtype": "float32"} | options)).precision

    assert precision() == "float32" and precision(bits=8, draft_bits=8) == "int8 (float32)"
    assert precision(dtype="bfloat16", draft_bits=4) == "bfloat16, draft int4 (bfloat16)"
    with pytest.raises(InputError, match="draft_bits is 8, 4, 'file' or None, not 3"):
        precision(draft_bits=3)


def test_the_dtype_is_chosen_for_the_device_unless_it_is_given(folders):
    assert ModelPair.from_pretrained(*folders).target.dtype == resolve_dtype("auto")


def test_a_pair_that_does_not_fit_is_refused_before_it_is_read(tiny_folders, monkeypatch):
    monkeypatch.setattr(shapes, "usable_memory", lambda mesh: 1000)
    monkeypatch.setattr(pairs, "load", None)
    with pytest.raises(InputError, match=r"of weights, and 0\.0 GB are free: spread the models"):
        ModelPair.from_pretrained(tiny_folders.target, tiny_folders.draft)

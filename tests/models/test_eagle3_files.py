"""EAGLE-3 folders: what is read and written of them, and what is refused, all of it in one line."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from published_heads import PublishedEagle3, check_against, pair_of, write_eagle3_folder, write_target
from safetensors.numpy import load_file, save_file
from tiny_pairs import tokens_of

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.draft_heads import kind_of, open_head
from kljudge_jax.models.eagle3 import Eagle3Config
from kljudge_jax.models.eagle3_files import Eagle3Folder, described_for, write_eagle3
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.shapes import bytes_per_device
from kljudge_jax.models.transformer import parameters

TARGET = TransformerConfig("llama", 64, 32, 48, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=16)
SOME = [40, 3, 17, 5, 63, 1, 22, 9]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target as Transformers has it, and its folder."""
    folder = tmp_path_factory.mktemp("target")
    return write_target(folder, "llama3"), folder


def refused(call):
    """What a call that is refused says, in one line."""
    with pytest.raises(InputError) as found:
        call()
    assert "\n" not in str(found.value)
    return str(found.value)


def changed(folder, change):
    """The folder, its tensors as `change` leaves them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, str(file))
    return folder


def test_a_folder_is_known_by_its_configuration(tmp_path):
    head = write_eagle3_folder(tmp_path / "head")
    assert kind_of(head) == "EAGLE-3" and isinstance(open_head(head), Eagle3Folder)
    other = write_eagle3_folder(tmp_path / "other", architectures=["LlamaForCausalLM"])
    assert kind_of(other) == "EAGLE-3"


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, (2, 3, 3)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 4]}}, (2, 3, 5)),  # SGLang's: indices of blocks
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 4]}, (1, 2, 4)),  # vLLM's: as here
        (
            {
                "eagle_aux_hidden_state_layer_ids": [2, 3, 5],
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 4]},
            },
            (2, 3, 5),
        ),
    ],
    ids=["default", "blocks", "layers", "both"],
)
def test_the_layers_that_it_reads(tmp_path, changes, layers):
    assert Eagle3Folder(write_eagle3_folder(tmp_path / "head", **changes)).fitted(TARGET).layers == layers


def test_rows_are_put_in_the_order_of_the_targets_ids(target, tmp_path):
    head = write_eagle3_folder(tmp_path / "head", ids=SOME)
    loaded = pair_of(target[1], head).draft
    rows = load_file(head / "model.safetensors")["lm_head.weight"]
    assert loaded.ids[...].tolist() == sorted(SOME)
    np.testing.assert_array_equal(loaded.head.weight[...], rows[np.argsort(SOME)])


def test_what_it_takes_is_what_its_parameters_take(tmp_path):
    head = write_eagle3_folder(tmp_path / "head", ids=SOME)
    config = Eagle3Folder(head).fitted(TARGET)
    tensors = load_file(head / "model.safetensors")
    numbers = sum(x.size for name, x in tensors.items() if name not in ("d2t", "t2d")) + len(SOME)
    assert bytes_per_device(config, Storage()) == 4 * numbers


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.first_case
def test_a_head_that_is_written_is_the_head_that_was_read(target, tmp_path, bias, embedding):
    model, folder = target
    head = write_eagle3_folder(
        tmp_path / "head", ids=SOME, bias=bias, embedding=embedding, norm_before_residual=embedding
    )
    pair = pair_of(folder, head)
    values = {name: np.asarray(x) for name, x in parameters(pair.draft).items() if name != "ids"}
    again = tmp_path / "again"
    write_eagle3(again, pair.draft.config, values, sorted(SOME), pair.tokenizer)
    reread = pair_of(folder, again)
    assert reread.draft.config == dataclasses.replace(
        pair.draft.config, decoder=dataclasses.replace(pair.draft.config.decoder, max_position=64)
    )
    for name, x in parameters(reread.draft).items():
        np.testing.assert_array_equal(x, parameters(pair.draft)[name], err_msg=name)
    # What others read of it: vLLM above, SGLang inside, and tensors under the public names.
    config = json.loads((again / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 3, 3]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 2, 2]
    written, original = (load_file(at / "model.safetensors") for at in (again, head))
    assert written.keys() == original.keys()
    np.testing.assert_array_equal(np.arange(8) + written["d2t"], sorted(SOME))
    np.testing.assert_array_equal(written["t2d"], original["t2d"])
    if bias and embedding:
        check_against(PublishedEagle3(again, model), model, reread, [1, 2, 2])
        answers = [
            tokens_of(kj.generate(one, [[3, 1, 4]], verifier="kl:1.0", draft_length=3, max_new_tokens=12))
            for one in (pair, reread)
        ]
        assert answers[0] == answers[1]


def test_bfloat16_is_written_as_such(tmp_path):
    config = described_for(TARGET, 8)
    head = {
        name: np.zeros(leaf.shape, ml_dtypes.bfloat16)
        for name, leaf in parameters(_abstract(config)).items()
        if name != "ids"
    }
    write_eagle3(tmp_path / "head", config, head, range(8))
    assert json.loads((tmp_path / "head" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert Eagle3Folder(tmp_path / "head").fitted(TARGET).draft_vocab == 8


def _abstract(config):
    from kljudge_jax.models.eagle3 import abstract

    return abstract(config)


@pytest.mark.parametrize("rope", [Rope(1e4, "linear", 4.0), Rope(5e5, "llama3", 8.0, original_max_position=32)])
def test_ropes_that_the_format_knows_are_kept(tmp_path, rope):
    config = described_for(dataclasses.replace(TARGET, rope=rope, qkv_bias=True), 8)
    values = {name: np.zeros(leaf.shape, np.float32) for name, leaf in parameters(_abstract(config)).items()}
    del values["ids"]
    write_eagle3(tmp_path / "head", config, values, range(8))
    found = Eagle3Folder(tmp_path / "head").fitted(TARGET)
    assert isinstance(found, Eagle3Config) and found.decoder.rope == rope and found.decoder.qkv_bias


def test_a_rope_that_the_format_has_no_word_for_is_refused(tmp_path):
    config = described_for(dataclasses.replace(TARGET, rope=Rope(1e4, "yarn", 4.0)), 8)
    said = refused(lambda: write_eagle3(tmp_path / "head", config, {}, range(8)))
    assert "a rope of scaling 'yarn' cannot be written" in said


def test_a_head_of_another_target_is_refused_with_all_that_differs(tmp_path):
    head = write_eagle3_folder(tmp_path / "head", vocab_size=70, target=16, eagle_aux_hidden_state_layer_ids=[2, 5, 9])
    said = refused(lambda: Eagle3Folder(head).fitted(TARGET))
    for part in (
        "it reads layers [2, 5, 9], and the target has 6",
        "it was made for 70 tokens, and the target has 64",
        "its fc reads 3 states of 16, and the target's hidden size is 32",
    ):
        assert part in said


def test_a_head_that_needs_the_targets_embeddings_has_its_size(tmp_path):
    head = write_eagle3_folder(tmp_path / "head", hidden=16, target=32, embedding=False)
    said = refused(lambda: Eagle3Folder(head).fitted(TARGET))
    assert "it has no embeddings of its own and a hidden size of 16, and the target's is 32" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids: ids.__setitem__(2, 99), "d2t names 1 tokens outside of 64"),
        (lambda ids: ids.__setitem__(2, -3), "d2t names 1 tokens outside of 64"),
        (lambda ids: ids.__setitem__(2, ids[1] - 1), "d2t names 1 tokens twice"),
        (lambda ids: ids.__setitem__(2, 59), "t2d and d2t do not name the same tokens"),
    ],
)
def test_ids_that_cannot_be_are_refused(tmp_path, change, said):
    head = changed(write_eagle3_folder(tmp_path / "head", ids=SOME), lambda tensors: change(tensors["d2t"]))
    assert said in refused(lambda: Eagle3Folder(head).fitted(TARGET))


def test_what_changes_nothing_in_a_configuration_is_taken(tmp_path):
    eagle = {"use_aux_hidden_state": True, "use_mtp_layernorm": False, "parallel_draft_step": 1, "norm_before_fc": None}
    head = write_eagle3_folder(tmp_path / "head", eagle_config=eagle, target_hidden_size=TARGET.hidden_size)
    assert Eagle3Folder(head).fitted(TARGET) == Eagle3Folder(write_eagle3_folder(tmp_path / "plain")).fitted(TARGET)


def test_a_head_of_another_hidden_size_by_its_own_word_is_refused(tmp_path):
    head = write_eagle3_folder(tmp_path / "head", target_hidden_size=4096)
    assert "it was made for a hidden size of 4096" in refused(lambda: Eagle3Folder(head).fitted(TARGET))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.update(d2t=x["d2t"] + 0.5), "d2t is of float64 and names no tokens"),
        (lambda x: x.pop("d2t"), "d2t is missing, and it drafts 8 of 64 tokens"),
        (lambda x: x.update(d2t=x["d2t"][:5].copy()), "d2t is [5] instead of [8]"),
    ],
)
def test_a_part_of_the_vocabulary_needs_its_table(tmp_path, change, said):
    head = changed(write_eagle3_folder(tmp_path / "head", ids=SOME), change)
    assert said in refused(lambda: Eagle3Folder(head).fitted(TARGET))


def test_a_head_without_tensors_is_refused_with_all_that_are_missing(tmp_path):
    def change(tensors):
        del tensors["fc.weight"], tensors["midlayer.self_attn.q_proj.weight"], tensors["d2t"]
        tensors["norm.weight"] = tensors["norm.weight"][:5].copy()
        tensors["more"] = tensors["norm.weight"].copy()

    head = changed(write_eagle3_folder(tmp_path / "head", ids=SOME), change)
    said = refused(lambda: Eagle3Folder(head).fitted(TARGET))
    for part in (
        "fc.weight is missing",
        "layers.0.attention.query.weight is missing",
        "more is not known",
        "final_norm.scale is [5] instead of [32]",
        "d2t is missing",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eagle_config": "yes"}, "eagle_config of config.json is no object"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, -1]}}, "is no list of layers"),
        ({"eagle_aux_hidden_state_layer_ids": "2,3"}, "is no list of layers"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "as EAGLE-1: give an EAGLE-3 head"),
        ({"num_hidden_layers": 2}, "has 2 layers: heads of one layer run here"),
        ({"norm_before_residual": "true"}, "norm_before_residual 'true': no such head runs here"),
        (
            {"norm_output": True, "eagle_config": {"norm_before_fc": True, "use_last_layernorm": False}},
            "norm_output True, norm_before_fc True, use_last_layernorm False: no such head runs here",
        ),
        (
            {
                "eagle_aux_hidden_state_layer_ids": [1, 2, 4],
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 4]},
            },
            "names layers [1, 2, 4] at its top, and blocks [1, 2, 4] in eagle_config, which are others",
        ),
    ],
)
def test_configurations_that_cannot_be_are_refused(tmp_path, changes, said):
    assert said in refused(lambda: open_head(write_eagle3_folder(tmp_path / "head", **changes)))


@pytest.mark.parametrize("size", [0, 65, "8", True])
def test_a_size_of_the_drafted_vocabulary_that_cannot_be_is_refused(tmp_path, size):
    head = write_eagle3_folder(tmp_path / "head", draft_vocab_size=size)
    assert "draft_vocab_size of config.json is" in refused(lambda: Eagle3Folder(head).fitted(TARGET))


def test_heads_of_eagle_1_are_refused_by_name(target, tmp_path):
    named = write_eagle3_folder(tmp_path / "named", architectures=["EagleForCausalLM"], draft_vocab_size=None)
    # As its authors publish it: a Llama of one layer, with an fc.
    plain = write_eagle3_folder(tmp_path / "plain", architectures=["LlamaForCausalLM"], draft_vocab_size=None)
    for head in (named, plain):
        assert refused(lambda head=head: pair_of(target[1], head)).endswith("EAGLE-1 or EAGLE-2: give an EAGLE-3 head")


def test_a_model_of_one_layer_is_no_head(tmp_path):
    write_target(tmp_path / "small", "llama3", num_hidden_layers=1)
    assert kind_of(tmp_path / "small") is None


def test_a_broken_file_is_said_to_be_broken(tmp_path):
    head = write_eagle3_folder(tmp_path / "head", architectures=["LlamaForCausalLM"], draft_vocab_size=None)
    (head / "model.safetensors").write_bytes(b"no such thing")
    assert kind_of(head) is None
    head = write_eagle3_folder(tmp_path / "head")
    (head / "model.safetensors").write_bytes(b"no such thing")
    assert "model.safetensors is broken" in refused(lambda: open_head(head))


def test_a_pickled_head_is_never_opened(target, tmp_path):
    head = write_eagle3_folder(tmp_path / "head")
    (head / "model.safetensors").rename(head / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in refused(lambda: pair_of(target[1], head))


def test_a_head_is_no_target(target, tmp_path):
    head = write_eagle3_folder(tmp_path / "head")
    said = refused(lambda: kj.ModelPair.from_pretrained(head, target[1]))
    assert said == f"{head} is a head (EAGLE-3), which is no model of its own: give it as the draft"

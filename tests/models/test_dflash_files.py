"""DFlash folders: what is read of them, and what is refused, all of it in one line."""

import json

import pytest
from published_heads import pair_of, write_dflash_folder, write_target
from safetensors.numpy import load_file, save_file

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.dflash_files import DFlashFolder
from kljudge_jax.models.draft_heads import kind_of, open_head
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.shapes import bytes_per_device

TARGET = TransformerConfig("qwen3", 64, 32, 48, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    write_target(folder, "qwen3")
    return folder


def refused(call):
    """What a call that is refused says, in one line."""
    with pytest.raises(InputError) as found:
        call()
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_folder_is_known_by_its_configuration(tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    assert kind_of(head) == "DFlash" and isinstance(open_head(head), DFlashFolder)
    # And where the architecture is named otherwise.
    assert kind_of(write_dflash_folder(tmp_path / "other", architectures=["Other"])) == "DFlash"


def test_layers_are_counted_from_one_and_sizes_found_wherever_they_stand(tmp_path):
    config = DFlashFolder(write_dflash_folder(tmp_path / "head")).fitted(TARGET)
    assert (config.layers, config.block_size, config.mask_id) == ((1, 3, 5), 6, 63)
    assert config.decoder.num_layers == 2 and config.decoder.qk_norm and config.decoder.rope.theta == 5000.0
    # Newer files have the block's size among their own options.
    inside = write_dflash_folder(tmp_path / "inside", own={"block_size": 4}, block_size=None)
    assert DFlashFolder(inside).fitted(TARGET).block_size == 4


def test_names_may_have_a_prefix(tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    file = head / "model.safetensors"
    save_file({f"model.{name}": x for name, x in load_file(file).items()}, str(file))
    assert DFlashFolder(head).fitted(TARGET).block_size == 6


def test_what_it_takes_is_what_its_parameters_take(target, tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    config = DFlashFolder(head).fitted(TARGET)
    numbers = sum(x.size for x in load_file(head / "model.safetensors").values())
    assert bytes_per_device(config, Storage()) == 4 * numbers
    assert pair_of(target, head).draft.config == config


def test_a_head_of_another_target_is_refused_with_all_that_differs(tmp_path):
    head = write_dflash_folder(
        tmp_path / "head", vocab_size=70, hidden=16, num_target_layers=9, own={"target_layer_ids": [1, 5, 8]}
    )
    said = refused(lambda: DFlashFolder(head).fitted(TARGET))
    for part in (
        "it reads what layers [1, 5, 8] give, and the target has 6",
        "it was made for a target of 9 layers, and this one has 6",
        "its hidden size is 16, and the target's 32",
        "it was made for 70 tokens, and the target has 64",
        "its mask is token 69, and the target has 64",
    ):
        assert part in said


def test_a_head_without_tensors_is_refused_with_all_that_are_missing(tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    file = head / "model.safetensors"
    tensors = load_file(file)
    del tensors["fc.weight"], tensors["layers.1.self_attn.q_norm.weight"]
    tensors["norm.weight"] = tensors["norm.weight"][:5].copy()
    tensors["candidate_selector.hidden_projection.weight"] = tensors["hidden_norm.weight"]
    save_file(tensors, str(file))
    said = refused(lambda: DFlashFolder(head).fitted(TARGET))
    for part in (
        "fc.weight is missing",
        "layers.1.attention.query_norm.scale is missing",
        "candidate_selector.hidden_projection.weight is not known",
        "final_norm.scale is [5] instead of [32]",
    ):
        assert part in said


def test_a_configuration_is_refused_with_all_that_is_wrong(tmp_path):
    own = {"mask_token_id": "<mask>", "target_layer_ids": [1, "2"], "output_multiplier": 0.2}
    head = write_dflash_folder(
        tmp_path / "head", own=own, block_size=1, draft_vocab_size=32, final_logit_softcapping=20.0, is_causal=True
    )
    said = refused(lambda: DFlashFolder(head))
    for part in (
        "target_layer_ids is [1, '2'] where a list of the target's layers is needed",
        "mask_token_id is '<mask>' where a token is needed",
        "block_size is 1 where a whole number from 2 on is needed",
        "it drafts 32 of 64 tokens: heads of all tokens run here",
        "output_multiplier 0.2 does not run here",
        "final_logit_softcapping 20.0 does not run here",
        "is_causal True does not run here",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dflash_config": "yes"}, "has no dflash_config"),
        ({"dflash_config": None}, "has no dflash_config"),
        ({"model_type": "llama"}, "model_type is 'llama', and the layers of a DFlash head are those of 'qwen3'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "layers with a sliding window"),
    ],
)
def test_other_kinds_are_refused(tmp_path, changes, said):
    head = write_dflash_folder(tmp_path / "head", **changes)
    assert said in refused(lambda: open_head(head))


def test_a_pickled_head_is_never_opened(target, tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    (head / "model.safetensors").rename(head / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in refused(lambda: pair_of(target, head))


def test_a_head_is_no_target(target, tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    said = refused(lambda: kj.ModelPair.from_pretrained(head, target))
    assert said == f"{head} is a head (DFlash), which is no model of its own: give it as the draft"


def test_a_configuration_that_is_no_json_is_refused(tmp_path):
    head = write_dflash_folder(tmp_path / "head")
    whole = (head / "config.json").read_text()
    (head / "config.json").write_text(whole[:40])
    assert "config.json" in refused(lambda: kind_of(head))
    assert json.loads(whole)["block_size"] == 6

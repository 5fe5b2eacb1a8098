"""Our configurations as config.json: read again they are the same, and what Transformers lacks is refused."""

import dataclasses

import pytest
from tiny_hf import FAMILIES
from tiny_pairs import tiny_config
from transformers import AutoConfig

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines.hf_config import hf_config
from kljudge_jax.models.config import Rope
from kljudge_jax.models.families import config_from_hf


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_survives_the_way_there_and_back(families, name):
    config = families(name)[1].target.config
    assert config_from_hf(hf_config(config)) == config
    content = hf_config(config)
    theirs = AutoConfig.for_model(content.pop("model_type"), **content)
    assert config_from_hf(theirs.to_dict()) == config


def test_no_special_token_comes_from_a_family(families):
    for name in ("llama2", "gemma3"):
        content = hf_config(families(name)[1].target.config)
        theirs = AutoConfig.for_model(content.pop("model_type"), **content)
        assert theirs.eos_token_id is theirs.bos_token_id is theirs.pad_token_id is None


def test_a_llama_with_windows_is_a_mistral():
    config = dataclasses.replace(tiny_config(), family="llama", windows=(6, 6))
    assert hf_config(config)["model_type"] == "mistral" and hf_config(config)["sliding_window"] == 6
    with pytest.raises(InputError, match=r"no mistral model with windows \[0, 6\]"):
        hf_config(dataclasses.replace(config, windows=(0, 6)))


def test_gemmas_of_every_query_scale():
    gemma = dataclasses.replace(tiny_config(), family="gemma2", query_scale=144**-0.5)
    assert hf_config(gemma)["query_pre_attn_scalar"] == 144
    assert isinstance(hf_config(gemma)["query_pre_attn_scalar"], int)
    assert hf_config(dataclasses.replace(gemma, query_scale=0.5))["query_pre_attn_scalar"] == 4


def test_every_scaling_of_rope_is_spelled_out():
    llama = dataclasses.replace(tiny_config(), family="llama")
    for rope in (Rope(5.0, "linear", 2.0), Rope(5.0, "yarn", 2.0, attention_factor=1.5, truncate=False, beta_slow=2.0)):
        config = dataclasses.replace(llama, rope=rope)
        assert config_from_hf(hf_config(config)).rope == rope


def test_a_family_of_nobody_is_refused():
    with pytest.raises(InputError, match="no family 'tiny': leave out the cells hf"):
        hf_config(tiny_config())

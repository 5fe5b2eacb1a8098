"""Our models in torch: the same logits, the same numbers, tied where ours are, and nothing left out unnoticed."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_hf import FAMILIES, hf_logits
from tiny_pairs import rounded, tiny_model, with_parameters

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines import torch_model as room
from kljudge_jax.evaluation.baselines.torch_model import export, torch_model
from kljudge_jax.models.config import Rope
from kljudge_jax.models.transformer import Transformer, assemble, parameters
from kljudge_jax.models.weights import SafetensorsFolder, load

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24))


def recast(model, dtype=None, **changes):
    """The model with another configuration or dtype; norm scales stay float32."""
    values = {
        name: value if dtype is None or name.endswith("scale") else value.astype(dtype)
        for name, value in parameters(model).items()
    }
    return assemble(dataclasses.replace(model.config, **changes), values)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_the_same(families, name):
    theirs, pair = families(name)
    made = export(pair.target)
    assert type(made) is type(theirs)
    ours = np.asarray(kj.score(pair.target, TOKENS.astype(np.int32))[0])
    np.testing.assert_allclose(hf_logits(made, TOKENS), ours, atol=1e-4)
    assert ours.std() > 0.1

    given, found = theirs.state_dict(), made.state_dict()
    assert given.keys() == found.keys()
    for key in given:
        # Gemma's 1 + w is what we hold, so w comes back to within its rounding.
        exact = "norm" not in key or not name.startswith("gemma")
        assert torch.equal(given[key], found[key]) if exact else torch.allclose(given[key], found[key], atol=1e-7)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3"])
def test_what_is_exported_is_read_again(families, name, tmp_path):
    model = families(name)[1].target
    export(model).save_pretrained(tmp_path)
    again = load(SafetensorsFolder(tmp_path))
    assert again.config == model.config
    for key, value in parameters(again).items():
        assert np.array_equal(value, parameters(model)[key]), key


def test_a_tied_head_stays_tied(families):
    made = export(families("smollm2")[1].target)
    assert made.lm_head.weight.data_ptr() == made.model.embed_tokens.weight.data_ptr()
    untied = export(families("llama2")[1].target)
    assert untied.lm_head.weight.data_ptr() != untied.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_dtypes_keep_every_bit(families, dtype):
    # Rounded, as scales of a model of that dtype are.
    wide = with_parameters(families("llama2")[1].target, lambda _, x: x.astype(jnp.dtype(dtype)).astype(np.float32))
    made = export(recast(wide, dtype))
    assert {str(p.dtype) for p in made.parameters()} == {f"torch.{dtype}"}
    ours = np.asarray(kj.score(wide, TOKENS.astype(np.int32))[0])
    np.testing.assert_allclose(hf_logits(made.float(), TOKENS), ours, atol=1e-4)


def test_the_norms_of_a_gemma_stay_float32(families):
    model = recast(families("gemma3")[1].target, jnp.bfloat16)
    made = export(model)
    scale = parameters(model)["layers.0.attention_norm.scale"]
    weight = made.model.layers[0].input_layernorm.weight
    assert weight.dtype == torch.float32 and np.array_equal(1 + weight.numpy(), scale)
    assert made.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert np.isfinite(made(torch.tensor(TOKENS)).logits.float().numpy()).all()


def test_frequencies_that_a_file_divides_are_divided(families):
    divisors = tuple(np.linspace(1, 8, 4).tolist())
    model = recast(families("llama2")[1].target, rope=Rope(100.0, frequency_divisors=divisors))
    ours = np.asarray(kj.score(model, TOKENS.astype(np.int32))[0])
    np.testing.assert_allclose(hf_logits(export(model), TOKENS), ours, atol=1e-4)
    plain = export(recast(model, rope=Rope(100.0)))
    assert np.abs(hf_logits(plain, TOKENS) - ours).max() > 0.01


def test_biases_that_only_some_projections_have_are_zeros_elsewhere(families):
    model = families("llama3")[1].target
    some = recast(model, out_bias=False)
    ours = np.asarray(kj.score(some, TOKENS.astype(np.int32))[0])
    made = export(some)
    assert not made.model.layers[0].self_attn.o_proj.bias.any()
    np.testing.assert_allclose(hf_logits(made, TOKENS), ours, atol=1e-4)


def test_what_transformers_has_no_place_for_is_refused(families):
    model = families("qwen2")[1].target
    more = Transformer(dataclasses.replace(model.config, mlp_bias=True), jax.random.key(0))
    with pytest.raises(InputError, match=r"Transformers' qwen2 has no layers.0.mlp.*bias"):
        export(more)
    with pytest.raises(InputError, match="no family 'tiny'"):
        export(tiny_model())


def test_a_model_is_made_once_and_goes_with_ours(families):
    model = with_parameters(families("llama2")[1].target, lambda name, x: x)
    made = torch_model(model)
    assert torch_model(model) is made is not torch_model(model, "draft")
    held = len(room._made)
    del model, made
    gc.collect()
    assert len(room._made) == held - 1


def test_rounded_weights_are_refused(families):
    with pytest.raises(InputError, match=r"cannot be given int8 \(float32\) weights"):
        torch_model(rounded(families("llama2")[1].target))

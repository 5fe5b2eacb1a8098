"""Published shapes against the published parameter counts, and random models of a shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.models import shapes
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.shapes import SHAPES, bytes_per_device, count_parameters, random_model, shape_config
from kljudge_jax.models.transformer import parameters
from kljudge_jax.parallel.placement import Placement

# As the model cards and the safetensors of the hub count them; a tied head counts once.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}

TINY = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    return shape_config("tiny")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(name):
    # All layers are alike, and tracing a hundred of them takes a second.
    one, two = (count_parameters(shape_config(f"{name}:layers={n}")) for n in (1, 2))
    assert one + (shape_config(name).num_layers - 1) * (two - one) == PUBLISHED[name]


@pytest.mark.parametrize(
    "name", [name if name == "smollm2-135m" else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_a_whole_shape_has_the_published_number_of_parameters(name):
    assert count_parameters(shape_config(name)) == PUBLISHED[name]


def test_every_shape_is_compared():
    assert set(SHAPES) == set(PUBLISHED)


def test_the_first_layers_of_a_shape():
    whole, part = shape_config("gemma-2-2b"), shape_config("gemma-2-2b:layers=5")
    assert part.num_layers == 5 and part.windows == whole.windows[:5] and part.hidden_size == whole.hidden_size


@pytest.mark.parametrize("word", ["gpt-9", "llama-3.1-8b:layers=0", "llama-3.1-8b:layers=33", "llama-3.1-8b:heads=2"])
def test_a_shape_that_is_not_there_is_refused(word):
    with pytest.raises(InputError, match="choose a shape" if word == "gpt-9" else "layers=N"):
        shape_config(word)


def test_random_weights_have_the_spread_of_a_new_model(tiny):
    model = random_model(tiny, Storage(jnp.bfloat16), seed=3)
    named = parameters(model)
    assert {str(leaf.dtype) for name, leaf in named.items() if not name.endswith("scale")} == {"bfloat16"}
    for name, leaf in named.items():
        values = np.asarray(leaf, np.float32)
        if name.endswith("scale"):
            assert (values == 1).all()
        else:
            assert abs(values.mean()) < 0.05 and 0.8 < values.std() * 16**0.5 < 1.2, name
    weights = [np.asarray(leaf, np.float32) for name, leaf in named.items() if name.endswith("gate.weight")]
    assert not np.array_equal(weights[0], weights[1])
    logits = jax.jit(lambda model, tokens: model.logits(model(tokens)[0].hidden))(
        model, np.arange(8, dtype=np.int32)[None]
    )
    assert np.isfinite(logits).all()


def test_a_mesh_holds_a_part_of_every_matrix_on_each_device(tiny):
    layout = Placement.parse("tensor=2").target(tiny)
    model = random_model(tiny, Storage(layout=layout))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model))
    assert held == bytes_per_device(tiny, Storage(layout=layout))
    assert bytes_per_device(tiny) == 4 * count_parameters(tiny) > 1.8 * held


def test_biases_are_zero(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY | {"model_type": "qwen2"})
    named = parameters(random_model(shape_config("tiny"), Storage()))
    biases = [leaf for name, leaf in named.items() if name.endswith("bias")]
    assert biases and not any(leaf.any() for leaf in biases)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_random_model_for_an_accelerator_lies_as_planned(tiny, platform):
    config = dataclasses.replace(tiny, hidden_size=64, intermediate_size=128)
    layout = Placement.parse("fsdp=2,tensor=2").target(config)
    for bits in (8, 4):
        storage = Storage(jnp.bfloat16, bits, layout, platform=platform)
        model = random_model(config, storage)
        for name, x in parameters(model).items():
            assert x.sharding.is_equivalent_to(storage.sharding(name, x.shape), x.ndim), name
        out = jax.jit(lambda model: model.logits(model(np.ones((2, 3), np.int32))[0].hidden))(model)
        assert np.isfinite(out).all() and np.asarray(out).std() > 0


def test_two_numbers_of_four_bits_are_a_byte():
    config = shape_config("llama-3.1-8b:layers=1")
    eight, four = (bytes_per_device(config, Storage(jnp.bfloat16, bits, platform="tpu")) for bits in (8, 4))
    matrices = 4096 * (4096 * 2 + 1024 * 2 + 3 * 14336)
    outputs = 4096 * 2 + 1024 * 2 + 2 * 14336 + 4096
    assert eight - four == matrices / 2 + 4 * outputs - 2 * matrices / 32  # less scales: an output's, and a block's

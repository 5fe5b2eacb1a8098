"""Products of float32 keep all its bits where an accelerator would round them; those of bfloat16 do not pay for it."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import abstract
from kljudge_jax.parallel.topology import topology_devices

CONFIG = TransformerConfig("llama", 2048, 512, 1024, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=128)
PRODUCTS = CONFIG.num_layers * (7 + 2) + 1  # matrices and attention's two of each layer, and the head
STORED = [None, 8, 4]


def a_pass(dtype, bits, platform, sharding=None):
    """A pass over a draft, lowered for one device of that platform."""
    model = abstract(CONFIG, Storage(jnp.dtype(dtype), bits=bits, platform=platform))
    cache = jax.eval_shape(lambda model: model.init_cache(2, 64), model)
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)

    def consume(model, tokens, cache):
        features, cache = model(tokens, cache)
        return model.logits(features.hidden), cache

    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (model, tokens, cache))
    return jax.jit(consume).lower(*given)


@pytest.mark.parametrize("bits", STORED)
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_float32_asks_for_all_bits_and_bfloat16_for_none(platform, bits):
    exact, rounded = (
        [line for line in a_pass(dtype, bits, platform).as_text().splitlines() if "stablehlo.dot_general" in line]
        for dtype in ("float32", "bfloat16")
    )
    assert len(exact) == len(rounded) == PRODUCTS
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in exact)
    assert not any("HIGH" in line for line in rounded)


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("bits", STORED)
def test_the_tpu_compiler_keeps_to_it(bits):
    chip = SingleDeviceSharding(topology_devices("v5e:1x1")[0])

    def products(dtype):
        text = a_pass(dtype, bits, "tpu", chip).compile().as_text()
        return [line for line in text.splitlines() if re.search(r"= \S+ (convolution|dot)\(", line)]

    exact, rounded = products("float32"), products("bfloat16")
    assert len(exact) >= PRODUCTS
    assert all("operand_precision={highest,highest}" in line for line in exact)
    assert not any("highest" in line for line in rounded)

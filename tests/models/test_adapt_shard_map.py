"""A model with one position for all rows inside shard_map, all checks on: each device has rows of its own."""

import foreign_models as foreign
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_adapt import MAKE, STEPS, K, own_greedy

import kljudge_jax as kj
from kljudge_jax import core


@pytest.mark.parametrize("kind", ["bonsai", pytest.param("gemma", marks=pytest.mark.slow)])
def test_inside_shard_map(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    model = MAKE[kind]()
    shape = core.Shape(K, STEPS)

    def answers(model, prompts, lengths, keys):
        models, numbers, rule = core.Models(model, model), core.numbers(STEPS), kj.GreedyExact()
        state = core.init(models, kj.ModelDraft(), rule, prompts, lengths, keys, numbers, shape=shape)
        return core.result(core.decode(models, kj.ModelDraft(), rule, state, numbers, shape=shape)).tokens

    width = max(map(len, foreign.PROMPTS))
    prompts = np.stack([np.pad(prompt, (0, width - len(prompt))) for prompt in foreign.PROMPTS] * 2).astype(np.int32)
    lengths = np.array([len(prompt) for prompt in foreign.PROMPTS] * 2, np.int32)
    split = jax.shard_map(answers, mesh=mesh, in_specs=(P(), P("data"), P("data"), P("data")), out_specs=P("data"))
    tokens = jax.jit(split)(model, prompts, lengths, jax.random.split(jax.random.key(0), 4))
    assert tokens.tolist() == own_greedy(kind) * 2

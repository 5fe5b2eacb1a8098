import jax
import numpy as np
from tiny_pairs import tiny_pair

from kljudge_jax.models.flat_model import flatten, unflatten
from kljudge_jax.models.transformer import parameters


def test_a_packed_model_is_the_same_model():
    model = tiny_pair().target
    again = unflatten(flatten(model))
    assert again.config == model.config and again.storage == model.storage
    assert all(x is parameters(model)[name] for name, x in parameters(again).items())
    assert flatten(None) is None and unflatten(None) is None and unflatten(model) is model


def test_another_model_of_that_shape_runs_the_same_program():
    traces = []

    @jax.jit
    def logits(model, tokens):
        traces.append(tokens.shape)
        model = unflatten(model)
        return model.logits(model(tokens)[0].hidden)

    tokens = np.arange(6)[None]
    one, other = (logits(flatten(tiny_pair(seed).target), tokens) for seed in (0, 1))
    assert len(traces) == 1 and not np.array_equal(one, other)
    logits(flatten(tiny_pair(num_layers=1).target), tokens)
    assert len(traces) == 2

"""Fingerprints: the same for the same weights, however they lie, and another for others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from spread_pairs import spread
from tiny_pairs import rounded, tiny_model, tiny_pair, with_parameters

from kljudge_jax.models import fingerprint as module
from kljudge_jax.models.fingerprint import fingerprint, fingerprints, same_model, weights_digest
from kljudge_jax.models.transformer import parameters


def test_the_same_weights_have_one_fingerprint_and_others_another():
    model = tiny_model(0)
    assert fingerprint(model) == fingerprint(tiny_model(0)) != fingerprint(tiny_model(1))
    assert len(weights_digest(model)) == 16 and fingerprint(model).startswith(weights_digest(model) + "-")
    for changed in parameters(model):  # any parameter that training moves is seen
        moved = with_parameters(model, lambda name, x, changed=changed: x * 1.02 if name == changed else x)
        assert fingerprint(moved) != fingerprint(model)


def test_equal_weights_of_another_configuration_are_another_model(monkeypatch):
    model = tiny_model(0)
    known, config = fingerprint(model), model.config

    def of(**changes):
        monkeypatch.setattr(model, "config", dataclasses.replace(config, **changes))
        return fingerprint(model)

    changes = [{"norm_eps": 1e-5}, {"num_heads": 2 * config.num_heads}, {"qk_norm": True}, {"activation": "gelu"}]
    changes += [{"rope": dataclasses.replace(config.rope, **rope)} for rope in ({"theta": 5e5}, {"factor": 2.0})]
    found = [of(**change) for change in changes]
    assert len({known, *found}) == 7 and {one.partition("-")[0] for one in found} == {weights_digest(model)}
    # A longer limit computes nothing else, and a .gguf file has numbers in float32.
    assert of(max_position=2 * config.max_position) == known
    assert of(norm_eps=float(np.float32(config.norm_eps))) == known
    for one in found:
        assert same_model(known, known) and not same_model(known, one)
        assert same_model(weights_digest(model), one), "an early version noted the weights alone"


def test_a_model_in_bfloat16_is_the_same_and_one_in_integers_is_not():
    model = tiny_model(0)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    assert fingerprint(half) == fingerprint(model) != fingerprint(rounded(model))


def test_a_mesh_changes_nothing():
    pair = tiny_pair()
    assert fingerprints(spread(pair, "data=2,tensor=2")) == fingerprints(pair)


def test_a_device_that_does_not_share_the_hosts_memory_gives_the_same(monkeypatch):
    models = [tiny_model(0), rounded(tiny_model(0))]
    expected = [fingerprint(model) for model in models]
    monkeypatch.setattr(module, "_shares_memory", lambda x: False)
    assert [fingerprint(model) for model in models] == expected


def test_only_some_numbers_of_a_large_matrix_are_read():
    x = jnp.asarray(np.arange(100 * 70.0).reshape(100, 70))
    some = module._some(x)
    assert some.shape == (32, 32) and some[0, 0] == 0 and some[-1, -1] == 100 * 70 - 1


def test_a_pair_has_one_of_each_model():
    pair = tiny_pair()
    assert fingerprints(pair) == {"target": weights_digest(pair.target), "draft": weights_digest(pair.draft)}
    assert fingerprints(dataclasses.replace(pair, draft=None))["draft"] is None


def test_any_pytree_has_one():
    def tree(**changes):
        leaves = {
            "value": np.float32([[1, 2], [3, 4]]),
            "half": jnp.ones((3,), jnp.bfloat16),
            "whole": jnp.asarray([1, 300], jnp.int32),
            "key": jax.random.key(0),
            "number": 0.5,
        }
        return {"layers": [leaves | changes]}

    assert fingerprint(tree()) == fingerprint(jax.tree.map(lambda x: x, tree()))
    changes = {"value": np.float32([[1, 2], [3, 5]]), "whole": jnp.asarray([1, 556], jnp.int32)}
    changes |= {"key": jax.random.key(1), "number": 0.75, "half": jnp.ones((4,), jnp.bfloat16)}
    found = [fingerprint(tree(**{name: value})) for name, value in changes.items()]
    assert len({fingerprint(tree()), *found}) == 6
    # Another leaf of the same numbers is another model.
    other = tree()["layers"][0]
    assert fingerprint({"layers": [other | {"next": other.pop("value")}]}) != fingerprint(tree())

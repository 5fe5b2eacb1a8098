"""The whole recipe on models that learn nothing: two folders that load, and a card."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.models.manifest import check_manifest
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import parameters
from kljudge_jax.training import agreement, trainer
from kljudge_jax.training import train_pair as module
from kljudge_jax.training.accuracy import accuracy
from kljudge_jax.training.agreement import measure_agreement
from kljudge_jax.training.train_pair import DRAFT, TARGET, pair_config, train_pair
from kljudge_jax.training.trainer import Recipe

SMALL = {
    "target": Recipe(pair_config(16, 1, 32, 2), steps=3, batch_size=8, seed=1, evaluate_every=100),
    "draft": Recipe(pair_config(8, 1, 16, 1), steps=2, batch_size=8, seed=2, evaluate_every=100),
}


@pytest.fixture(scope="module")
def in_short():
    """Few problems for the tokenizer, short answers of which few are compared at a time, and an optimiser that is
    soon compiled: what a step does is for other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOKENIZER_PROBLEMS", 1000)
        patch.setattr(trainer, "make_optimizer", lambda steps, *rates: optax.sgd(1e-3))
        patch.setattr(module, "accuracy", functools.partial(accuracy, max_new_tokens=32))
        patch.setattr(module, "measure_agreement", functools.partial(measure_agreement, max_new_tokens=32))
        patch.setattr(agreement, "_BATCH", 16)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_width, in_short):
    folder = tmp_path_factory.mktemp("pair")
    card = train_pair(folder, **SMALL, test_problems=4, devices=jax.devices()[:1])
    return folder, card


def test_leaves_a_pair_that_loads(trained):
    folder, card = trained
    pair = ModelPair.from_pretrained(folder / "target", folder / "draft", dtype="float32")
    for name, model in (("target", pair.target), ("draft", pair.draft)):
        assert model.config == SMALL[name].config
        assert sum(np.size(array) for array in parameters(model).values()) == card.parameters[name]
    assert pair.tokenizer.eos_token_id in pair.eos
    assert pair.tokenizer("12")["input_ids"] != pair.tokenizer("21")["input_ids"]


def test_the_card_says_how_it_was_made(trained):
    folder, card = trained
    assert json.loads((folder / "card.json").read_text()) == json.loads(json.dumps(card.to_dict()))
    text = (folder / "README.md").read_text()
    assert f"{card.parameters['target']:,}" in text and text.count("| arithmetic |") == 3
    check_manifest(folder)
    assert card.problems == 4 and set(card.accuracy["draft"]) == {"arithmetic", "conversion"}


def test_a_second_call_trains_nothing(trained):
    folder, card = trained

    def never(model, progress):
        raise AssertionError(model)

    again = train_pair(folder, **SMALL, report=never, test_problems=4, devices=jax.devices()[:1])
    assert again.accuracy == card.accuracy


def test_refuses_two_vocabularies(tmp_path):
    other = dataclasses.replace(SMALL["draft"], config=dataclasses.replace(SMALL["draft"].config, vocab_size=512))
    with pytest.raises(InputError, match="same vocabulary"):
        train_pair(tmp_path, target=SMALL["target"], draft=other)


def test_the_shipped_recipes_keep_the_promised_ratio():
    from kljudge_jax.models.transformer import abstract

    sizes = [sum(np.prod(x.shape) for x in parameters(abstract(r.config)).values()) for r in (TARGET, DRAFT)]
    assert sizes[0] >= 8 * sizes[1]
    assert TARGET.seed != DRAFT.seed

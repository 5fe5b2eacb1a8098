"""Training: it learns, and a killed run comes to the same weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.training.batches import Mixture
from kljudge_jax.training.trainer import Progress, Recipe, train, weighted_loss


@pytest.fixture(scope="module")
def recipe(config):
    return Recipe(config, steps=12, batch_size=8, evaluate_every=6, checkpoint_every=4)


@pytest.fixture(scope="module")
def mixture(tokenizer, one_width):
    return Mixture({Arithmetic(): 1.0}, tokenizer, batch_size=8, seed=0)


QUICKLY = {"report_every": 3, "validation_problems": 4, "devices": jax.devices()[:1]}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole_run(recipe, mixture, tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("whole"), []
    model = train(recipe, mixture, folder, seen.append, **QUICKLY)
    return folder, model, seen


def test_loss_falls_and_progress_is_told(whole_run):
    _, _, seen = whole_run
    assert [progress.step for progress in seen] == [3, 6, 9, 12]
    assert seen[-1].loss < seen[0].loss - 0.3
    assert seen[0].loss == pytest.approx(np.log(384), abs=0.7), "untrained, it knows nothing"
    assert [set(progress.accuracy) for progress in seen] == [set(), {"arithmetic"}, set(), {"arithmetic"}]
    assert all(progress.examples_per_second > 0 for progress in seen)


@pytest.mark.parametrize("killed_at", [3, 9])
def test_resumes_to_the_same_weights(recipe, mixture, whole_run, tmp_path, killed_at):
    def kill(progress):
        if progress.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, mixture, tmp_path, kill, **QUICKLY)
    resumed = train(recipe, mixture, tmp_path, **QUICKLY)
    folder, model, _ = whole_run
    for name, expected in parameters(model).items():
        np.testing.assert_array_equal(parameters(resumed)[name], expected, err_msg=name)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (tmp_path, folder)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]] == [3, 6, 9, 12]
    assert [entry["accuracy"] for entry in logs[0]] == [entry["accuracy"] for entry in logs[1]]


def test_a_finished_run_is_not_trained_again(recipe, mixture, whole_run):
    folder, model, _ = whole_run

    def never(progress):
        raise AssertionError(progress)

    again = train(recipe, mixture, folder, never, **QUICKLY)
    for name, expected in parameters(model).items():
        np.testing.assert_array_equal(parameters(again)[name], expected)


def test_every_device_takes_a_part_of_the_batch(recipe, mixture, whole_run, tmp_path):
    seen = []

    def kill(progress):
        seen.append(progress)
        raise Killed

    assert jax.device_count() > 1
    with pytest.raises(Killed):
        train(recipe, mixture, tmp_path, kill, report_every=3, devices=jax.devices())
    assert seen[0].loss == pytest.approx(whole_run[2][0].loss, rel=1e-4), "as the same three steps on one device"


def test_refuses_a_run_of_another_recipe(recipe, mixture, whole_run):
    with pytest.raises(InputError, match="another recipe"):
        train(dataclasses.replace(recipe, seed=5), mixture, whole_run[0])


def test_refuses_a_batch_that_does_not_divide(recipe, mixture, tmp_path):
    with pytest.raises(InputError, match=f"multiple of {jax.device_count()}"):
        train(dataclasses.replace(recipe, batch_size=jax.device_count() + 1), mixture, tmp_path)


def test_progress_is_one_line():
    line = str(Progress(1500, 4000, 0.3359, 57.1, {"arithmetic": 0.4453, "conversion": 0.125}))
    assert line == "step 1,500 of 4,000, loss 0.336, 57 examples/s, arithmetic 44.5%, conversion 12.5%"


def test_loss_reads_only_weighted_tokens(config):
    model = jax.jit(lambda key: Transformer(config, key))(jax.random.key(0))
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 10), dtype=np.int32)
    weights = np.zeros((2, 10), np.float32)
    weights[0, 4], weights[1, 6] = 1.0, 3.0
    log_probs = jax.jit(lambda model, tokens: jax.nn.log_softmax(model.logits(model(tokens)[0].hidden)))(model, tokens)
    log_probs = np.asarray(log_probs)
    expected = -(log_probs[0, 3, tokens[0, 4]] + 3 * log_probs[1, 5, tokens[1, 6]]) / 4
    loss = jax.jit(weighted_loss)
    assert float(loss(model, tokens, weights)) == pytest.approx(float(expected), rel=1e-5)
    # What comes after the last weighted token cannot matter.
    other = tokens.copy()
    other[:, 7:] = 0
    assert float(loss(model, other, weights)) == pytest.approx(float(expected), rel=1e-5)

"""Trains one decoder from nothing, on every device there is, and goes on where a killed run stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.orbax import saving
from kljudge_jax.models.transformer import Transformer, assemble, parameters
from kljudge_jax.records import LineWriter, plain, read, read_log, write, write_text
from kljudge_jax.results_folder import results_folder
from kljudge_jax.training.accuracy import accuracy
from kljudge_jax.training.batches import Curriculum, Mixture
from kljudge_jax.training.optimizer import Turns, make_optimizer

_ADVICE = "choose an empty folder, or delete that run"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One model's training.

    Attributes:
      config: its shape.
      steps: optimiser steps.
      batch_size: examples a step, a multiple of the number of devices.
      seed: of the initial weights and of the data.
      muon_rate, adam_rate: peak learning rates of matrices and of everything else.
      turns: (step, share of the peak) between which both rates go in straight lines; see `optimizer.schedule`.
      curriculum: (first step, shares of tasks by name) of each stage of the data.
      evaluate_every: steps between two measurements of answer accuracy on validation problems.
      checkpoint_every: steps between two checkpoints: what a kill can lose.
    """

    config: TransformerConfig
    steps: int
    batch_size: int = 32
    seed: int = 0
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    turns: Turns = ()
    curriculum: tuple[tuple[int, tuple[tuple[str, float], ...]], ...] = (
        (0, (("arithmetic", 0.55), ("conversion", 0.45))),
    )
    evaluate_every: int = 500
    checkpoint_every: int = 250


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: what `train` reports every few steps.

    Attributes:
      step, steps: done and to do.
      loss: mean weighted cross-entropy in nats per token over the steps since the last report.
      examples_per_second: over the same steps, evaluation left out.
      accuracy: by task name, share of validation problems answered right; empty when not measured at this step.
    """

    step: int
    steps: int
    loss: float
    examples_per_second: float
    accuracy: dict[str, float]

    def __post_init__(self) -> None:
        if not (0 <= self.step <= self.steps and self.examples_per_second > 0):
            raise ValueError("step lies from 0 to steps, and examples_per_second is above 0")

    def __str__(self) -> str:
        right = "".join(f", {name} {share:.1%}" for name, share in self.accuracy.items())
        return (
            f"step {self.step:,} of {self.steps:,}, loss {self.loss:.3f}, "
            f"{self.examples_per_second:.0f} examples/s{right}"
        )


def train(
    recipe: Recipe,
    mixture: Mixture | Curriculum,
    folder: str | os.PathLike,
    report: Callable[[Progress], None] = lambda progress: None,
    report_every: int = 50,
    validation_problems: int = 128,
    devices: Sequence[jax.Device] | None = None,
) -> Transformer:
    """Trains a model and returns it.

    A second call with the same arguments and folder goes on from the last checkpoint, and on the same devices comes to
    the same weights bit for bit: data, schedule and optimiser state are functions of the step.

    Args:
      recipe: shape, length and rates.
      mixture: the data; its batch size is the recipe's.
      folder: holds `checkpoints/` and `log.jsonl`, one line for each report.
      report: called every `report_every` steps.
      validation_problems: how many of each task an evaluation answers.
      devices: what to spread each batch over; by default every device.

    Raises:
      InputError: when the batch does not divide over the devices, or the folder holds a run of another recipe.
    """
    devices = jax.devices() if devices is None else devices
    if recipe.batch_size % len(devices):
        raise InputError(f"Choose a batch size that is a multiple of {len(devices)}, the number of devices.")
    folder = results_folder(Path(folder).absolute())
    _claim(folder, recipe)
    mesh = Mesh(np.array(devices), ("data",))
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    state = jax.jit(functools.partial(_start, recipe), out_shardings=NamedSharding(mesh, PartitionSpec()))()
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            state = manager.restore(done, args=ocp.args.StandardRestore(state))
        _forget_after(folder / "log.jsonl", done)
        losses, began = [], time.perf_counter()
        for index in range(done, recipe.steps):
            batch = mixture.at(index)
            tokens, weights = jax.device_put((batch.tokens, batch.weights), by_row)
            state, loss = _step(recipe, state, tokens, weights)
            losses.append(loss)
            now = index + 1
            if now % report_every == 0 or now == recipe.steps:
                mean = float(np.mean(jax.device_get(losses)))
                rate = len(losses) * recipe.batch_size / (time.perf_counter() - began)
                right = {}
                if now % recipe.evaluate_every == 0 or now == recipe.steps:
                    right = _examine(recipe.config, state["params"], mixture, validation_problems)
                progress = Progress(now, recipe.steps, mean, rate, right)
                with LineWriter(folder / "log.jsonl") as log:
                    log.append(progress)
                report(progress)
                losses, began = [], time.perf_counter()
            if now % recipe.checkpoint_every == 0 or now == recipe.steps:
                with saving(folder / "checkpoints"):
                    manager.save(now, args=ocp.args.StandardSave(state))
    return assemble(recipe.config, jax.device_get(state["params"]))


def training_seconds(folder: str | os.PathLike) -> float:
    """How long the optimiser steps of a run took, over all its restarts: what its log adds up to."""
    lines = read_log(Path(folder) / "log.jsonl", Progress, _ADVICE)
    batch = read(Path(folder) / "recipe.json", Recipe, _ADVICE, exact=True).batch_size
    steps = [line.step - before for before, line in zip([0, *(line.step for line in lines)], lines, strict=False)]
    return sum(batch * n / line.examples_per_second for n, line in zip(steps, lines, strict=True))


def weighted_loss(model: Transformer, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of predicting each token int32 `[B, T]` from those before it, by weights `[B, T]`."""
    features, _ = model(tokens[:, :-1])
    hidden = cast(jax.Array, features.hidden)
    surprise = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), tokens[:, 1:])
    return jnp.sum(surprise * weights[:, 1:]) / jnp.sum(weights[:, 1:])


def _optimizer(recipe):
    return make_optimizer(recipe.steps, recipe.muon_rate, recipe.adam_rate, recipe.turns)


def _start(recipe):
    params = parameters(Transformer(recipe.config, jax.random.key(recipe.seed)))
    return {"params": params, "optimizer": _optimizer(recipe).init(params)}


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def _step(recipe, state, tokens, weights):
    def loss_of(params):
        return weighted_loss(assemble(recipe.config, params), tokens, weights)

    loss, gradient = jax.value_and_grad(loss_of)(state["params"])
    updates, inner = _optimizer(recipe).update(gradient, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": inner}, loss


def _examine(config, params, mixture, count):
    model = assemble(config, jax.device_get(params))
    return {
        task.name: accuracy(model, mixture.tokenizer, task, task.problems("validation", count))
        for task in mixture.tasks
    }


def _claim(folder: Path, recipe: Recipe) -> None:
    path = folder / "recipe.json"
    if not path.exists():
        write(path, recipe)
    elif read(path, Recipe, _ADVICE, exact=True) != recipe:
        raise InputError(f"{folder} holds a run of another recipe: choose an empty folder, or delete that run.")


def _forget_after(log: Path, step: int) -> None:
    """Drops the lines of steps that a kill has undone."""
    if log.exists():
        kept = [one for one in read_log(log, Progress, _ADVICE) if one.step <= step]
        write_text(log, "".join(f"{json.dumps(plain(one))}\n" for one in kept))

"""Trains an EAGLE-3 head on a target's features, on every device there is, and goes on where a killed run stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.errors import InputError
from kljudge_jax.models.eagle3 import Eagle3Config, Eagle3Head, abstract
from kljudge_jax.models.linear import Storage, is_matrix
from kljudge_jax.models.orbax import saving
from kljudge_jax.models.transformer import fill
from kljudge_jax.records import LineWriter, differing, plain, read, read_log, write, write_text
from kljudge_jax.results_folder import results_folder
from kljudge_jax.training.draft_features import Features
from kljudge_jax.training.draft_rollout import HeadBatch, chains, loss_and_acceptance
from kljudge_jax.training.optimizer import schedule

_ADVICE = "choose an empty folder, or delete that run"

# Sequences and anchors are padded to multiples of these: few programs are compiled.
_WIDTH, _ANCHORS = 128, 64
# So many batches of sequences are drawn at once and sorted by length.
_POOL = 8

# What is not trained: the target's own rows.
_FROZEN = "head.weight"


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """A head's training.

    Attributes:
      steps_ahead: how many draft tokens it learns to write with its own output.
      decay: what a step counts, as a share of the one before it.
      batch_size: sequences of an optimizer step, a multiple of the number of devices.
      passes: over the corpus.
      rate: Adam's, at its peak.
      held_out: sequences at the end of the corpus that are never learnt.
      evaluate_ahead: how many draft tokens are looked at on those.
      seed: of the order, and of what no layer of the target begins.
      evaluate_every, checkpoint_every: optimizer steps.
      warmup: optimizer steps before the peak.
    """

    steps_ahead: int = 3
    decay: float = 0.8
    batch_size: int = 4
    passes: float = 1.0
    rate: float = 3e-4
    held_out: int = 32
    evaluate_ahead: int = 6
    seed: int = 0
    evaluate_every: int = 50
    checkpoint_every: int = 50
    warmup: int = 20

    def __post_init__(self) -> None:
        least_one = (self.steps_ahead, self.batch_size, self.held_out, self.evaluate_ahead)
        positive = all(math.isfinite(x) and x > 0 for x in (self.passes, self.rate, self.decay))
        if min(*least_one, self.evaluate_every, self.checkpoint_every) < 1 or not positive or self.seed < 0:
            raise InputError(
                "a head's recipe has numbers from 1 on, a seed from 0 on, and passes, a rate and a decay above 0"
            )


@dataclasses.dataclass(frozen=True)
class HeadProgress:
    """Where a run stands.

    Attributes:
      step, steps: done and to do.
      tokens: of answers, seen so far.
      loss: mean over the steps since the last report, in nats.
      held_out: share of held-out anchors whose greedy draft is right up to its first, second, ... token; empty when
        not measured at this step.
      seconds: since the last report.
    """

    step: int
    steps: int
    tokens: int
    loss: float
    held_out: tuple[float, ...]
    seconds: float

    @property
    def mean_acceptance_length(self) -> float | None:
        """Of greedy drafts of `evaluate_ahead` tokens from any place of the held-out answers. Decoding drafts where the
        draft before failed, which are harder places: there it is less."""
        return 1 + sum(self.held_out) if self.held_out else None

    def __str__(self) -> str:
        kept = "".join(f" {share:.3f}" for share in self.held_out)
        ends = f", held out{kept} ({self.mean_acceptance_length:.2f} tokens a cycle)" if kept else ""
        return f"step {self.step:,} of {self.steps:,}, {self.tokens:,} tokens, loss {self.loss:.3f}{ends}"


def check_divides(recipe: HeadRecipe, devices: int) -> None:
    """Raises `InputError` if a batch of the recipe cannot be spread evenly over so many devices."""
    if recipe.batch_size % devices:
        raise InputError(
            f"{recipe.batch_size} answers of an optimizer step do not divide over {devices} devices: choose a "
            f"multiple of {devices} (batch_size of the recipe, --train-batch)"
        )


def has_begun(folder: Path) -> bool:
    """Whether a training's folder holds a checkpoint: until then nothing is lost with another recipe."""
    # One that is being written, or that a killed run left, has a longer name.
    return any(path.name.isdecimal() for path in (folder / "checkpoints").glob("*"))


class HeadData:
    """Batches of a run: a function of the step, so that it resumes to the same data."""

    def __init__(self, features: Features, recipe: HeadRecipe, embed: Callable[[np.ndarray], np.ndarray]):
        if len(features) < recipe.held_out + recipe.batch_size:
            raise InputError(f"{len(features)} sequences leave no batch to learn from: {recipe.held_out} are held out")
        self.features, self.recipe = features, recipe
        self.learnt = len(features) - recipe.held_out
        self.used, self.table = features.ids, embed(features.ids)

    @property
    def steps(self) -> int:
        """Of the run."""
        return max(1, int(self.recipe.passes * self.learnt) // self.recipe.batch_size)

    def at(self, step: int) -> tuple[HeadBatch, np.ndarray, int]:
        """The batch of a step, the embeddings of its tokens f32 `[B, T, H]`, and its anchors."""
        per_pass = max(1, self.learnt // self.recipe.batch_size)
        return self._batch(self._rows(step // per_pass)[step % per_pass])

    def answer_tokens(self, steps: int) -> int:
        """Of so many steps from the first on; no state is read."""
        # The first two tokens of a sequence are nobody's answer: a head has drafted nothing there.
        counts = np.maximum(self.features.lengths - np.maximum(2, self.features.answers), 0)
        passes, rest = divmod(steps, max(1, self.learnt // self.recipe.batch_size))
        whole = sum(int(counts[self._rows(number)].sum()) for number in range(passes))
        return whole + int(counts[self._rows(passes)[:rest]].sum())

    def _rows(self, number: int) -> list[list[int]]:
        """The sequences of each batch of a pass; those of a batch have answers that are about equally long."""
        rng, size = np.random.default_rng((self.recipe.seed, number)), self.recipe.batch_size
        order = rng.permutation(self.learnt)
        answers = self.features.lengths - self.features.answers
        pools = [order[i : i + _POOL * size] for i in range(0, self.learnt, _POOL * size)]
        ordered = np.concatenate([pool[np.argsort(answers[pool], kind="stable")] for pool in pools])
        batches = [ordered[i : i + size].tolist() for i in range(0, self.learnt - size + 1, size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def held_out(self) -> list[tuple[HeadBatch, np.ndarray, int]]:
        """All that is never learnt; rows that fill the last batch up have no answer."""
        rows = list(range(self.learnt, len(self.features)))
        size = self.recipe.batch_size
        return [self._batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    def _batch(self, rows: list[int]) -> tuple[HeadBatch, np.ndarray, int]:
        found = [self.features[i] for i in rows]
        width = -(-max(len(one.tokens) for one in found) // _WIDTH) * _WIDTH
        anchors = -(-max(len(one.tokens) - one.answer for one in found) // _ANCHORS) * _ANCHORS
        size = self.recipe.batch_size
        states = np.zeros((size, width, found[0].states.shape[-1]), found[0].states.dtype)
        tokens = np.full((size, width), self.used[0], np.int32)
        starts, ends = np.full(size, 2, np.int32), np.zeros(size, np.int32)
        for i, one in enumerate(found):
            count = len(one.tokens)
            states[i, :count], tokens[i, :count] = one.states, one.tokens
            starts[i], ends[i] = max(2, one.answer), count
        embeddings = self.table[np.searchsorted(self.used, tokens)]
        arrays: Any = states, tokens, starts, ends  # on the host until they are placed
        return HeadBatch(*arrays), embeddings, anchors


def train_head(
    config: Eagle3Config,
    start: dict[str, np.ndarray],
    ids: np.ndarray,
    data: HeadData,
    folder: str | Path,
    report: Callable[[HeadProgress], None] = lambda progress: None,
    report_every: int = 10,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    """Trains a head, and returns its parameters by dotted name, f32.

    A second call with the same arguments and folder goes on from the last checkpoint, and on the same devices comes to
    the same parameters bit for bit.

    Args:
      config: its shape.
      start: its parameters before; of `draft_start.starting_values`.
      ids: the tokens that it can draft, ascending.
      data: what it learns from, and the recipe.
      folder: holds `checkpoints/`, `recipe.json` and `log.jsonl`, one line for each report.
      report: called every `report_every` steps.
      devices: what to spread a batch over; by default every device.

    Raises:
      InputError: the batch does not divide over the devices, or the folder holds a run of another recipe.
    """
    recipe = data.recipe
    devices = jax.devices() if devices is None else devices
    check_divides(recipe, len(devices))
    folder = results_folder(Path(folder).absolute())
    path = folder / "recipe.json"
    if not path.exists() or not has_begun(folder):
        write(path, recipe)
    elif others := differing(read(path, HeadRecipe, _ADVICE, exact=True), recipe):
        raise InputError(f"{folder} holds a run of another recipe, which differs in {others}: {_ADVICE}")
    mesh = Mesh(np.array(devices), ("data",))
    by_row, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    rows = jax.device_put(start[_FROZEN].astype(jnp.bfloat16), whole)
    known = np.zeros(config.decoder.vocab_size, bool)
    known[ids] = True
    fixed = rows, jax.device_put(ids.astype(np.int32), whole), jax.device_put(known, whole)
    params = jax.device_put({name: array for name, array in start.items() if name != _FROZEN}, whole)
    state = {"params": params, "optimizer": jax.device_put(_optimizer(recipe, data.steps).init(params), whole)}

    def placed(given):
        batch, embeddings, anchors = given
        return jax.device_put((batch, embeddings), by_row), anchors

    def examined(params) -> tuple[float, ...]:
        total = np.zeros((recipe.evaluate_ahead, 2))
        for given in data.held_out():
            part, anchors = placed(given)
            total += np.asarray(_examine(config, recipe.evaluate_ahead, anchors, params, fixed, *part))
        return tuple((total[:, 0] / np.maximum(total[:, 1], 1)).tolist())

    options = ocp.CheckpointManagerOptions(max_to_keep=1, save_interval_steps=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            state = manager.restore(done, args=ocp.args.StandardRestore(state))
        lines = [line for line in read_log(folder / "log.jsonl", HeadProgress, _ADVICE) if line.step <= done]
        write_text(folder / "log.jsonl", "".join(f"{json.dumps(plain(one))}\n" for one in lines))
        losses, began = [], time.perf_counter()
        for index in range(done, data.steps):
            given = data.at(index)
            part, anchors = placed(given)
            state, loss = _step(config, recipe, data.steps, anchors, state, fixed, *part)
            losses.append(loss)
            now = index + 1
            ends = now == data.steps
            if now % report_every == 0 or now % recipe.evaluate_every == 0 or ends:
                mean = float(np.mean(jax.device_get(losses)))
                if not math.isfinite(mean):
                    raise InputError(f"the loss is no number at step {now}: delete {folder} and choose a lower rate")
                held = examined(state["params"]) if now % recipe.evaluate_every == 0 or ends else ()
                line = HeadProgress(now, data.steps, data.answer_tokens(now), mean, held, time.perf_counter() - began)
                with LineWriter(folder / "log.jsonl") as log:
                    log.append(line)
                report(line)
                losses, began = [], time.perf_counter()
            if now % recipe.checkpoint_every == 0 or ends:
                with saving(folder / "checkpoints"):
                    manager.save(now, args=ocp.args.StandardSave(state))
    return {**jax.device_get(state["params"]), _FROZEN: start[_FROZEN]}


def _optimizer(recipe: HeadRecipe, steps: int) -> optax.GradientTransformation:
    rise = min(recipe.warmup, max(1, steps // 4))
    turns = ((0, 0.0), (rise, 1.0), (max(rise + 1, steps // 2), 1.0), (max(rise + 2, steps), 0.05))
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule(steps, recipe.rate, turns), b2=0.95, weight_decay=0.0)
    )


def _assembled(config: Eagle3Config, params: dict[str, Any], rows: jax.Array, ids: jax.Array) -> Eagle3Head:
    """The head with its matrices in bfloat16, whose masters are float32."""
    storage = Storage(jnp.bfloat16)
    values = {
        name: x.astype(jnp.bfloat16) if is_matrix(name) or name.endswith("bias") else x for name, x in params.items()
    }
    return fill(abstract(config, storage), {**values, _FROZEN: rows, "ids": ids})


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _step(config, recipe: HeadRecipe, steps: int, anchors: int, state, fixed, batch, embeddings):
    rows, ids, known = fixed

    def loss_of(params):
        head = _assembled(config, params, rows, ids)
        found = chains(head, embeddings, batch, anchors, recipe.steps_ahead)
        return loss_and_acceptance(head, known, found, recipe.decay)[0]

    loss, gradient = jax.value_and_grad(loss_of)(state["params"])
    updates, inner = _optimizer(recipe, steps).update(gradient, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": inner}, loss


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _examine(config, steps: int, anchors: int, params, fixed, batch, embeddings):
    rows, ids, known = fixed
    head = _assembled(config, params, rows, ids)
    return loss_and_acceptance(head, known, chains(head, embeddings, batch, anchors, steps), 1.0)[1]

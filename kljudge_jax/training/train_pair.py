"""The embedded pair, made from nothing: tokenizer, target, draft, and a card of what came out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kljudge_jax.errors import InputError
from kljudge_jax.machine import describe_machine
from kljudge_jax.models import orbax
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.manifest import write_manifest
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.records import named
from kljudge_jax.results_folder import results_folder
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.tasks.conversion import Conversion, HardConversion
from kljudge_jax.tasks.generated import GeneratedTask
from kljudge_jax.tasks.load import load_task
from kljudge_jax.training.accuracy import accuracy
from kljudge_jax.training.agreement import measure_agreement
from kljudge_jax.training.batches import Curriculum, Mixture
from kljudge_jax.training.bpe import train_tokenizer
from kljudge_jax.training.card import Card
from kljudge_jax.training.trainer import Progress, Recipe, train, training_seconds

VOCAB_SIZE = 640
_TOKENIZER_PROBLEMS = 10_000
_VALIDATION_PROBLEMS = 128
_AGREEMENT_PROBLEMS = 256


def pair_config(hidden_size: int, num_layers: int, intermediate_size: int, num_heads: int) -> TransformerConfig:
    """A Llama of the pair's vocabulary with a tied head."""
    return TransformerConfig(
        family="llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position=512,
        tied_head=True,
    )


# Deep and narrow against shallow: on every backend a pass of the target costs several of the draft.
# It learns on harder conversions than it will be asked, until it writes both domains fluently.
TARGET = Recipe(
    pair_config(96, 8, 256, 3),
    steps=11_000,
    seed=1,
    turns=(
        (0, 0.0),
        (80, 1.0),
        (2500, 1.0),
        (5000, 1 / 3),
        (5050, 0.45),
        (8500, 0.0),
        (8520, 0.2),
        (10_000, 0.0),
        (10_020, 0.2),
        (11_000, 0.0),
    ),
    curriculum=(
        (0, (("arithmetic", 0.55), ("conversion-hard", 0.45))),
        (5000, (("arithmetic", 0.55), ("conversion-mixed", 0.45))),
        (8500, (("arithmetic", 0.4), ("conversion-mixed", 0.6))),
        (10_000, (("arithmetic", 0.45), ("conversion", 0.55))),
    ),
)
# It stops where it still errs, and as often in one domain as in the other: the target has to have something to mend.
DRAFT = Recipe(
    pair_config(48, 2, 128, 3),
    steps=1700,
    seed=2,
    curriculum=((0, (("arithmetic", 0.8), ("conversion", 0.2))),),
)


def train_pair(
    folder: str | os.PathLike,
    target: Recipe = TARGET,
    draft: Recipe = DRAFT,
    report: Callable[[str, Progress], None] = lambda model, progress: None,
    test_problems: int = 1000,
    devices: Sequence[jax.Device] | None = None,
) -> Card:
    """Trains target and draft separately on the mixture of both domains, and examines them on unseen problems.

    Leaves `target/` and `draft/` (what `ModelPair.from_pretrained` takes), `card.json` and `README.md`, their
    `SHA256SUMS`, and the working state of the runs in `runs/`. Called again after a kill it goes on, and comes to
    the same weights.

    Args:
      folder: where to; created.
      report: called with "target" or "draft" as training goes on.
      test_problems: how many of each domain the examination asks.
      devices: what to train on; by default every device.

    Raises:
      InputError: the two recipes do not share a vocabulary, or the folder holds a run of other recipes.
    """
    if target.config.vocab_size != draft.config.vocab_size:
        raise InputError("Give target and draft the same vocabulary size: a pair shares one tokenizer.")
    folder = results_folder(Path(folder).absolute())
    tokenizer = _tokenizer(folder / "runs" / "tokenizer", target.config.vocab_size)
    right, seconds, sizes = {}, {}, {}
    for name, recipe in (("target", target), ("draft", draft)):
        data = make_curriculum(tokenizer, recipe)
        model = train(
            recipe,
            data,
            folder / "runs" / name,
            functools.partial(report, name),
            validation_problems=min(_VALIDATION_PROBLEMS, test_problems),
            devices=devices,
        )
        seconds[name] = round(training_seconds(folder / "runs" / name), 1)
        sizes[name] = sum(array.size for array in parameters(model).values())
        right[name] = examine(model, tokenizer, test_problems)
        if not orbax.is_ours(folder / name):
            orbax.save(folder / name, model, tokenizer, eos=(tokenizer.eos_token_id,))
    pair = ModelPair.from_pretrained(folder / "target", folder / "draft", dtype="float32")
    agreement = {
        task.name: measure_agreement(pair, task.problems("test", min(test_problems, _AGREEMENT_PROBLEMS)))
        for task in (Arithmetic(), Conversion())
    }
    recipes = {"target": target, "draft": draft}
    card = Card(sizes, recipes, right, test_problems, seconds, agreement, describe_machine())
    card.write(folder)
    write_manifest(folder, ("target", "draft", "card.json", "README.md"))
    return card


def make_curriculum(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Curriculum:
    """The recipe's data, drawn by its seed."""
    return Curriculum(
        [
            (
                first,
                Mixture({_own_task(name): share for name, share in shares}, tokenizer, recipe.batch_size, recipe.seed),
            )
            for first, shares in recipe.curriculum
        ]
    )


def _own_task(name: str) -> GeneratedTask:
    task = load_task(name)
    assert isinstance(task, GeneratedTask)
    return task


def examine(model: Transformer, tokenizer: PreTrainedTokenizerFast, count: int = 1000) -> dict[str, float]:
    """By domain, the share of `count` test problems that greedy decoding answers right."""
    return {
        task.name: accuracy(model, tokenizer, task, task.problems("test", count))
        for task in (Arithmetic(), Conversion())
    }


def _tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    if not folder.exists():
        tasks = (Arithmetic(), HardConversion())  # the latter's wordings are all there are
        problems = [task.problem("train", 0, i) for task in tasks for i in range(_TOKENIZER_PROBLEMS)]
        made = train_tokenizer((f"{p.prompt}{p.solution}" for p in problems), vocab_size)
        with named(folder):
            made.save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))

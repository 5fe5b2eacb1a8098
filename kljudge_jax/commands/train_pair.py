"""`kljudge train-pair`."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from kljudge_jax.commands.options import OK, command
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError


def add(commands) -> None:
    parser = command(
        commands,
        "train-pair",
        _train_pair,
        "Train a target and a draft from nothing on word problems and conversions, as the embedded pair was.",
        "  kljudge train-pair my-pair\n  kljudge train-pair quick --target-steps 200 --draft-steps 200 --problems 100",
        "the last checkpoint is in {folder}: repeat the command to go on",
    )
    parser.add_argument("folder", metavar="DIR", help="where to; repeat the command to go on after a kill")
    parser.add_argument("--target-steps", metavar="INT", type=int, help="optimiser steps of the target")
    parser.add_argument("--draft-steps", metavar="INT", type=int, help="optimiser steps of the draft")
    parser.add_argument("--batch", metavar="INT", type=int, help="examples a step; a multiple of the devices")
    parser.add_argument("--seed", metavar="INT", type=int, help="of the target; the draft takes the next")
    parser.add_argument(
        "--problems", metavar="INT", type=int, default=1000, help="unseen problems of each domain in the examination"
    )


def _train_pair(options) -> int:
    from kljudge_jax.evaluation.step import Step
    from kljudge_jax.training.train_pair import DRAFT, TARGET, train_pair

    if options.problems < 1:
        raise InputError("--problems starts at 1")
    target = _changed(TARGET, options, options.target_steps, options.seed)
    draft = _changed(DRAFT, options, options.draft_steps, None if options.seed is None else options.seed + 1)
    before: dict[str, int] = {}  # the step at which each model went on
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def show(model, progress):
            if model not in bars:
                for other in bars.values():
                    other.stop()
                bars[model] = stack.enter_context(Bar())
            bar = bars[model]
            step = Step(f"{model}: {progress}", progress.step, progress.steps, before.setdefault(model, progress.step))
            # What was measured stays on the screen; the rest gives way to the next report.
            (bar.keep if progress.accuracy or progress.step == progress.steps else bar.show)(step)

        card = train_pair(options.folder, target, draft, show, options.problems)
    print(json.dumps(dataclasses.asdict(card)["accuracy"]))
    print(options.folder)
    return OK


def _changed(recipe, options, steps, seed):
    changes = {"steps": steps, "batch_size": options.batch, "seed": seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in ("steps", "batch_size"):
        if changes.get(name, 1) < 1:
            raise InputError("--target-steps, --draft-steps and --batch start at 1")
    if not 0 <= changes.get("seed", 0) < 2**31:
        raise InputError("--seed is a number from 0 to 2**31 - 1")
    if steps is not None:  # a shorter run turns its rates and its data in proportion
        changes["turns"] = tuple((place * steps // recipe.steps, share) for place, share in recipe.turns)
        changes["curriculum"] = tuple((first * steps // recipe.steps, shares) for first, shares in recipe.curriculum)
    return dataclasses.replace(recipe, **changes)

"""`kljudge train-pair`."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from kljudge_jax.commands.command import DIR, OK, Whole, argument, command, option
from kljudge_jax.commands.progress import Bar


@command(
    "Train a target and a draft from nothing on word problems and conversions, as the embedded pair was.",
    [
        argument("folder", "where to; repeat the command to go on after a kill", type=DIR),
        option("--target-steps", "optimiser steps of the target", type=Whole()),
        option("--draft-steps", "optimiser steps of the draft", type=Whole()),
        option("--batch", "examples a step; a multiple of the devices", type=Whole()),
        option("--seed", "of the target; the draft takes the next", type=Whole(0, 2**31 - 2)),
        option("--problems", "unseen problems of each domain in the examination", type=Whole(), default=1000),
    ],
    "  kljudge train-pair my-pair\n  kljudge train-pair quick --target-steps 200 --draft-steps 200 --problems 100",
    "the last checkpoint is in {folder}: repeat the command to go on",
)
def train_pair(options) -> int:
    from kljudge_jax.progress_update import ProgressUpdate
    from kljudge_jax.training.train_pair import DRAFT, TARGET, train_pair

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
            step = ProgressUpdate(
                f"{model}: {progress}", progress.step, progress.steps, before.setdefault(model, progress.step)
            )
            # What was measured stays on the screen; the rest gives way to the next report.
            (bar.keep if progress.accuracy or progress.step == progress.steps else bar.show)(step)

        card = train_pair(options.folder, target, draft, show, options.problems)
    print(json.dumps(card.accuracy))
    print(options.folder)
    return OK


def _changed(recipe, options, steps, seed):
    changes = {"steps": steps, "batch_size": options.batch, "seed": seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    if steps is not None:  # a shorter run turns its rates and its data in proportion
        changes["turns"] = tuple((place * steps // recipe.steps, share) for place, share in recipe.turns)
        changes["curriculum"] = tuple((first * steps // recipe.steps, shares) for first, shares in recipe.curriculum)
    return dataclasses.replace(recipe, **changes)

"""`kljudge train-judge`."""

from __future__ import annotations

import itertools

import click

from kljudge_jax.commands.command import DIR, OK, argument, command, option
from kljudge_jax.commands.progress import Bar


@command(
    "Train a judge on what `kljudge mine` found, and print its threshold table.",
    [
        argument("data", "a folder that `kljudge mine` wrote", type=DIR),
        argument("folder", "a new folder for the judge", type=DIR),
        option("--setup", "what it reads, such as DT or DD-DT", default="DD-DT"),
        option("--model", "the head", type=click.Choice(("linear", "mlp")), default="linear"),
        option("--class-weight", "of the two labels", type=click.Choice(("none", "balanced")), default="none"),
        option("--seed", "of the split by question", default=0),
    ],
    "  kljudge train-judge mined/arithmetic judges/arithmetic\n"
    "  kljudge generate --target embedded --verifier judge:judges/arithmetic,threshold=0.5 --raw 'Tom has 3 pens.'",
)
def train_judge(options) -> int:
    from kljudge_jax.judges.jobs import train_judge
    from kljudge_jax.judges.training import Options
    from kljudge_jax.progress_update import ProgressUpdate

    settings = Options(options.setup, options.model, class_weight=options.class_weight, seed=options.seed)
    with Bar() as bar:
        points = itertools.count(1)

        def show(point):
            line = f"C {point.C:.3g}: validation AUC {point.validation_auc:.3f}"
            bar.show(ProgressUpdate(line, next(points), len(settings.grid)))

        judge = train_judge(options.data, options.folder, settings, show)
    print(judge.markdown(), end="")
    print(f"\n{options.folder}")
    return OK

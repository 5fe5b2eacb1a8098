"""`kljudge train-judge`."""

from __future__ import annotations

import itertools

from kljudge_jax.commands.options import OK, command
from kljudge_jax.commands.progress import Bar


def add(commands) -> None:
    parser = command(
        commands,
        "train-judge",
        _train_judge,
        "Train a judge on what `kljudge mine` found, and print its threshold table.",
        "  kljudge train-judge mined/arithmetic judges/arithmetic\n"
        "  kljudge generate --target embedded --verifier judge:judges/arithmetic,threshold=0.5 --raw 'Tom has 3 pens.'",
    )
    parser.add_argument("data", metavar="DATA", help="a folder that `kljudge mine` wrote")
    parser.add_argument("folder", metavar="DIR", help="a new folder for the judge")
    parser.add_argument("--setup", metavar="NAME", default="DD-DT", help="what it reads, such as DT or DD-DT")
    parser.add_argument("--model", choices=("linear", "mlp"), default="linear", help="the head")
    parser.add_argument("--class-weight", choices=("none", "balanced"), default="none", help="of the two labels")
    parser.add_argument("--seed", metavar="INT", type=int, default=0, help="of the split by question")


def _train_judge(options) -> int:
    from kljudge_jax.evaluation.step import Step
    from kljudge_jax.judges.jobs import train_judge
    from kljudge_jax.judges.training import Options

    settings = Options(options.setup, options.model, class_weight=options.class_weight, seed=options.seed)
    with Bar() as bar:
        points = itertools.count(1)

        def show(point):
            line = f"C {point.C:.3g}: validation AUC {point.validation_auc:.3f}"
            bar.show(Step(line, next(points), len(settings.grid)))

        judge = train_judge(options.data, options.folder, settings, show)
    print(judge.markdown(), end="")
    print(f"\n{options.folder}")
    return OK

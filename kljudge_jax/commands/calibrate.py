"""`kljudge calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from kljudge_jax.commands.command import DIR, OK, RULE, Whole, command, flag, option
from kljudge_jax.commands.options import (
    SAMPLING,
    SPLITS,
    as_model_reads,
    check_drafter,
    decoding_config,
    decoding_options,
    has_draft,
    load_pair,
    model_options,
    status_of,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError


@command(
    "Choose a relaxed rule's threshold so that, but for a risk of --delta, it loses at most --budget points of "
    "accuracy against the target's own answers, on prompts from the same source.",
    [
        *model_options(),
        option("--task", "arithmetic, conversion, gsm8k:FILE, prompts:FILE, ...", required=True),
        option("--rule", "a relaxed rule by its word, less its threshold: kl, fuzzy:js", type=RULE, default="kl"),
        option(
            "--thresholds",
            "from strict to relaxed, with commas; the first that fails ends the search",
            metavar="FLOATS",
            default="0.01,0.02,0.05,0.1,0.2,0.4",
        ),
        option("--budget", "points that may be lost at the most, in 100", default=1.0),
        option("--delta", "the risk of losing more", default=0.05),
        flag(
            "--without-answers",
            "loss is not accuracy but disagreement with the target's own final answer, or text where a task has none",
        ),
        option("--n", "prompts to choose on", type=Whole(), default=1000),
        option("--split", "of the task, to choose on", type=click.Choice(SPLITS), default="validation"),
        option("--check-n", "prompts to measure the chosen threshold on; 0 is none", type=Whole(0), default=0),
        option("--check-split", "of the task, to measure on", type=click.Choice(SPLITS[:3]), default="test"),
        option("--out", "where answers and calibration.json go", type=DIR, default="results/calibrate"),
        *decoding_options(*SAMPLING, "draft_length", "drafter", "batch", call="calibrate"),
    ],
    "  kljudge calibrate --target embedded --task arithmetic --rule kl --thresholds 0.01,0.02,0.05,0.1 --n 1000\n"
    "  kljudge calibrate --target big.gguf --draft small.gguf --task prompts:prompts.txt --without-answers "
    "--rule kl --thresholds 0.1,0.2,0.4 --budget 10 --n 300",
    "every batch that was answered is in {out}: repeat the command to go on",
)
def calibrate(options) -> int:
    from kljudge_jax.evaluation import calibrate, calibration_text
    from kljudge_jax.tasks import load_task

    plan = _plan(options)
    task = load_task(options.task)  # a bad one is refused before minutes go into loading a model
    if options.n < plan.smallest_n:
        if not (Path(options.out) / "plan.json").exists():  # another calibration's result stays
            calibrate.write(options.out, calibrate.summary(options.target, plan, [], options.words, None))
        print(f"{calibration_text.too_few(plan)}\n\n{calibration_text.verdict(plan, [])}")
        return OK
    pair = load_pair(options)
    task = as_model_reads(task, options.task, pair)
    checked = None
    with Bar() as bar:
        tested = calibrate.calibrate(pair, task, plan, options.out, bar.show)
    best = calibrate.chosen(tested)
    if best is not None and options.check_n:
        with Bar() as bar:
            checked = calibrate.check(
                pair, task, plan, best, options.check_n, options.check_split, options.out, bar.show
            )
    calibrate.write(options.out, calibrate.summary(pair.target_name, plan, tested, options.words, checked))
    print(f"{calibration_text.table(plan, tested)}\n{calibration_text.verdict(plan, tested)}")
    if checked is not None:
        print(calibration_text.told(checked))
    failed = sum(one.failed for one in [*tested, *([checked] if checked else [])])
    return status_of(options, failed)


def _plan(options):
    from kljudge_jax.evaluation.calibrate import PLAIN, Plan
    from kljudge_jax.evaluation.sweep import grid
    from kljudge_jax.verification.words import threshold_words

    config = decoding_config(options)
    if not 0 < options.budget < 100:
        raise InputError(f"--budget is in points, above 0 and below 100, got {options.budget:g}")
    if not 0 < options.delta < 1:
        raise InputError(f"--delta is a risk above 0 and below 1, such as 0.05, got {options.delta:g}")
    if options.check_n and options.split in ("all", options.check_split):
        raise InputError("--check-split has to name another part of the task than --split, or it would measure nothing")
    rules = threshold_words(options.rule, options.thresholds.split(","), config.greedy)
    check_drafter(config, has_draft(options))
    return Plan(
        cells=(PLAIN, *grid(rules, [config.draft_length])),
        n=options.n,
        split=options.split,
        config=config,
        budget=options.budget / 100,
        delta=options.delta,
        without_answers=options.without_answers,
    )

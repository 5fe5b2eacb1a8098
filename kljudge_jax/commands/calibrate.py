"""`kljudge calibrate`."""

from __future__ import annotations

import click

from kljudge_jax.commands.command import DIR, RULE, Whole, command, flag, option
from kljudge_jax.commands.options import (
    CHAT,
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


@command(
    "Choose a relaxed rule's threshold so that, but for a risk of --delta, it loses at most --budget points of "
    "accuracy against the target's own answers, on prompts from the same source.",
    [
        *model_options(hosts=False),
        option("--task", "arithmetic, conversion, gsm8k:FILE, prompts:FILE, ...", required=True),
        option("--rule", "a relaxed rule's spec string, less its threshold: kl, fuzzy:js", type=RULE, default="kl"),
        option(
            "--thresholds",
            "from strict to relaxed, with commas; the first that fails ends the search",
            metavar="FLOATS",
            default="0.01,0.02,0.05,0.1,0.2,0.4",
        ),
        option("--budget", "most points that may be lost, in 100", default=1.0),
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
        *decoding_options(*SAMPLING, "draft_length", "drafter", "batch", *CHAT, call="calibrate"),
    ],
    "  kljudge calibrate --target embedded --task arithmetic --rule kl --thresholds 0.01,0.02,0.05,0.1 --n 1000\n"
    "  kljudge calibrate --target big.gguf --draft small.gguf --task prompts:prompts.txt --without-answers "
    "--rule kl --thresholds 0.1,0.2,0.4 --budget 10 --n 300",
    "every batch that was answered is in {out}: repeat the command to go on",
)
def calibrate(options) -> int:
    from kljudge_jax.evaluation.calibration.call import Calibration, calibrated, planned
    from kljudge_jax.tasks import load_task

    config = decoding_config(options)
    names = ("budget", "delta", "without_answers", "n", "split", "check_n", "check_split")
    asked = {name: getattr(options, name) for name in names}
    plan = planned(options.rule, options.thresholds.split(","), **asked, config=config)
    check_drafter(config, has_draft(options))
    task = load_task(options.task)  # a bad one is refused before minutes go into loading a model
    if options.n < plan.smallest_n:
        found = Calibration(options.target, plan)
    else:
        pair = load_pair(options)
        task = as_model_reads(task, options.task, pair)
        with Bar() as bar:
            found = calibrated(pair, task, plan, options.out, options.check_n, options.check_split, bar.show)
    found.save(options.out, options.words)
    print(found)
    return status_of(options, found.failed)

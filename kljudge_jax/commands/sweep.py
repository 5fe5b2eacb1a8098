"""`kljudge sweep`."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict

import click

from kljudge_jax.commands.command import DIR, FAILED, OK, RULES, Lengths, Whole, Wholes, command, option
from kljudge_jax.commands.options import (
    CHAT,
    RUN_CODE,
    SAMPLING,
    SPLITS,
    as_model_reads,
    check_drafter,
    decoding_config,
    decoding_options,
    has_draft,
    load_checked_task,
    load_pair,
    model_options,
    note,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.spec import split_specs

# So many problems are named of each rule that failed.
_MOST_NAMED = 20


@command(
    "Answer the problems of a task under several rules, and compare accuracy, acceptance and speed.",
    [
        *model_options(),
        option("--task", "arithmetic, conversion, gsm8k:FILE, ...; with commas", metavar="TASKS", required=True),
        option(
            "--rules",
            "spec strings of rules, with commas; kl:0.1/0.4 stands for kl:0.1,kl:0.4. And baselines: draft (the draft "
            "alone), lookup:3 (exact, with drafts looked up), hf, hf:assisted, hf:lookup:3 (Transformers on the same "
            "weights, which needs torch)",
            type=RULES,
            default="none,exact,kl:0.4",
        ),
        option("--draft-lengths", "draft lengths, with commas", type=Lengths(), default="8"),
        RUN_CODE,
        option("--n", "problems", type=Whole(), default=100),
        option("--split", "of the task", type=click.Choice(SPLITS), default="test"),
        option("--seeds", "several seeds, with commas, in place of --seed", type=Wholes(0)),
        option("--examples", "answers of each task to show token by token", type=Whole(0), default=1),
        option("--out", "where answers and the report go", type=DIR, default="results/sweep"),
        *decoding_options(*SAMPLING, "drafter", "batch", *CHAT, call="sweep"),
    ],
    "  kljudge sweep --target embedded --task arithmetic,conversion --rules none,exact,kl:0.02/0.1/0.4 --n 200\n"
    "  kljudge sweep --target big.gguf --draft small.gguf --task gsm8k:test.jsonl --rules none,exact,kl:0.3 "
    "--draft-lengths 8,24 --n 30 --out results/gsm8k\n"
    "  kljudge sweep --target embedded --task arithmetic --rules none,exact,draft,lookup:3,hf,hf:assisted "
    "--batch 1",
    "every batch that was answered is in {out}: repeat the command to go on",
)
def sweep(options) -> int:
    from kljudge_jax.evaluation.baselines import check_baselines, parse_baseline
    from kljudge_jax.evaluation.report.write import TaskResult, findings, read_metadata, write_report
    from kljudge_jax.evaluation.sweep import run as sweep
    from kljudge_jax.evaluation.sweep.examples import examples
    from kljudge_jax.evaluation.sweep.summary import markdown_table, short_table, summarise
    from kljudge_jax.evaluation.sweep.summary import note as notes_under
    from kljudge_jax.tasks import load_task
    from kljudge_jax.text_table import aligned
    from kljudge_jax.verification import parse_verifier

    config = decoding_config(options)
    specs = split_specs(options.rules)
    rules = [spec for spec in specs if parse_baseline(spec) is None]
    parsed = [parse_verifier(rule, config.greedy) for rule in rules]
    seeds = options.seeds or [options.seed]
    if any(rule != "none" for rule in rules):
        check_drafter(config, has_draft(options), rules=parsed)
    check_baselines(specs, has_draft(options))
    named = [spec.strip() for spec in options.task.split(",")]
    for spec in named:
        load_checked_task(spec, options.run_code)
    plan = sweep.Plan(sweep.grid(specs, options.draft_lengths), options.n, options.split, config)
    pair = load_pair(options)
    tasks = [as_model_reads(load_task(spec, run_code=options.run_code), spec, pair, options.run_code) for spec in named]
    parts = sweep.parts(tasks, seeds, plan, options.out)
    answered, shown = defaultdict(list), defaultdict(list)
    for part in parts:
        note(f"{part.task.name}, seed {part.plan.config.seed}")
        with Bar() as bar:
            records = sweep.run_sweep(pair, part.task, part.plan, part.folder, bar.show)
        answered[part.task.name].append((part.plan, records))
    with Bar("answers to show token by token"):
        for part in parts:
            if part.plan.config.seed == seeds[0]:
                shown[part.task.name] = examples(pair, part, options.examples)
    results = [
        TaskResult(name, summarise(sweep.pooled(records)), shown[name], config.greedy)
        for name, records in answered.items()
    ]
    metadata = read_metadata([part.folder for part in parts], shlex.join(["kljudge", *options.words]))
    files = write_report(options.out, results, metadata)
    for result in results:
        # A person gets columns that fit a terminal, a program those of the report.
        if sys.stdout.isatty():
            said = notes_under(result.rows, result.greedy)
            shown_table = f"{aligned(short_table(result.rows, result.greedy))}\n" + (f"\n{said}\n" if said else "")
        else:
            shown_table = markdown_table(result.rows, result.greedy)
        print(f"{result.name}:\n\n{shown_table}")
        print("".join(f"{line}\n" for line in findings(result.rows, result.greedy)))
    print(f"Report: {files[0]}")
    failed = False
    for name, of_seeds in answered.items():
        pooled = sweep.pooled(of_seeds)
        for cell, problems in _problems(pooled, "draft_failed"):
            said = f"the draft returned NaN or +inf in {len(problems)} answers, which the target went on with alone"
            print(f"kljudge sweep: {name}, {cell}: {said}: {_named(problems)}", file=sys.stderr)
        for cell, problems in _problems(pooled, "failed"):
            failed = True
            said = f"a model returned NaN or +inf in {len(problems)} answers"
            print(f"kljudge sweep: {name}, {cell}: {said}: {_named(problems)}", file=sys.stderr)
    return FAILED if failed else OK


def _problems(records, count: str) -> list[tuple[str, list[str]]]:
    """By rule, the problems whose records have something under `count`."""
    from kljudge_jax.evaluation.sweep import run as sweep

    found = defaultdict(list)
    for record in records:
        if getattr(record, count):
            found[sweep.cell_of(record).name].append(record.problem)
    return list(found.items())


def _named(problems: list[str]) -> str:
    more = len(problems) - _MOST_NAMED
    return ", ".join(problems[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

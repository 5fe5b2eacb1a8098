"""`kljudge sweep`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from kljudge_jax.commands.options import (
    FAILED,
    OK,
    add_drafter,
    add_models,
    add_sampling,
    as_model_reads,
    check_drafter,
    check_sampling,
    command,
    has_draft,
    load_pair,
    note,
    split_rules,
)
from kljudge_jax.errors import InputError


def add(commands) -> None:
    parser = command(
        commands,
        "sweep",
        _sweep,
        "Answer the problems of a task under several rules, and compare accuracy, acceptance and speed.",
        "  kljudge sweep --target big.gguf --draft small.gguf --task gsm8k:test.jsonl --rules none,exact,kl:0.3 "
        "--draft-lengths 8,24 --n 30 --out results/gsm8k\n"
        "  kljudge sweep --target embedded --task arithmetic --rules none,exact,draft,lookup:3,hf,hf:assisted "
        "--batch 1",
    )
    add_models(parser)
    parser.add_argument("--task", required=True, metavar="TASK", help="arithmetic, conversion, gsm8k:FILE, ...")
    parser.add_argument(
        "--rules",
        metavar="RULES",
        default="none,exact,kl:0.4",
        help="rules by their words, with commas; and baselines: draft (the draft alone), lookup:3 (exact, with drafts "
        "looked up), hf, hf:assisted, hf:lookup:3 (Transformers on the same weights, which needs torch)",
    )
    parser.add_argument("--draft-lengths", metavar="INTS", default="8", help="draft lengths, with commas")
    add_drafter(parser)
    parser.add_argument("--n", metavar="INT", type=int, default=100, help="problems")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test", "all"), help="of the task")
    parser.add_argument("--batch", metavar="INT", type=int, default=8, help="answers decoded side by side")
    parser.add_argument("--out", metavar="DIR", default="results/sweep", help="where answers and the table go")
    add_sampling(parser)


def _sweep(options) -> int:
    from kljudge_jax.decoding.words import parse_drafter
    from kljudge_jax.evaluation import sweep
    from kljudge_jax.evaluation.baselines import check_baselines, parse_baseline
    from kljudge_jax.tasks import load_task
    from kljudge_jax.verification import parse_verifier

    check_sampling(options)
    words = split_rules(options.rules)
    rules = [word for word in words if parse_baseline(word) is None]
    for rule in rules:
        parse_verifier(rule, options.temperature == 0)
    try:
        lengths = [int(length) for length in options.draft_lengths.split(",")]
    except ValueError:
        raise InputError(f"--draft-lengths takes whole numbers with commas, got {options.draft_lengths!r}") from None
    if min(lengths) < 1 or options.n < 1 or options.batch < 1:
        raise InputError("--draft-lengths, --n and --batch start at 1")
    drafter = parse_drafter(options.drafter)
    if any(rule != "none" for rule in rules):
        check_drafter(options, drafter)
    check_baselines(words, has_draft(options))
    task = load_task(options.task)  # a bad one is refused before minutes go into loading a model
    plan = sweep.Plan(
        cells=sweep.grid(words, lengths),
        n=options.n,
        split=options.split,
        seed=options.seed,
        batch=options.batch,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        drafter=options.drafter,
    )
    pair = load_pair(options)
    task = as_model_reads(task, options.task, pair)
    try:
        records = sweep.run_sweep(pair, task, plan, options.out, note)
    except KeyboardInterrupt:
        print(f"\nkljudge sweep: stopped; repeat the command to go on in {options.out}", file=sys.stderr)
        return 128 + signal.SIGINT
    rows = sweep.summarise(records)
    table = sweep.markdown_table(rows)
    folder = Path(options.out)
    (folder / "summary.json").write_text(json.dumps({"schema": sweep.SCHEMA, "cells": rows}, indent=2) + "\n")
    (folder / "table.md").write_text(table)
    print(table, end="")
    failed = sum(row["failed"] for row in rows)
    if failed:
        print(f"kljudge sweep: a model returned NaN or +inf in {failed} answers", file=sys.stderr)
    return FAILED if failed else OK

"""`kljudge bench`."""

from __future__ import annotations

import shlex

import click

from kljudge_jax.commands.command import (
    DIR,
    EMBEDDED,
    RULES,
    Whole,
    Wholes,
    command,
    flag,
    option,
)
from kljudge_jax.commands.options import (
    CHAT,
    SAMPLING,
    SPLITS,
    as_model_reads,
    check_drafter,
    decoding_config,
    decoding_options,
    load_pair,
    model_options,
    placement_of,
    status_of,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError
from kljudge_jax.results_folder import results_folder
from kljudge_jax.spec import split_specs

_RANDOM = "Random weights"


@command(
    "Measure speed alone: the parts of a cycle, tokens per second, bandwidth, and the draft length that pays.",
    [
        *model_options(required=False),
        option(
            "--shape",
            "of the target, in place of --target: a published one such as llama-3.1-8b, or its first layers alone: "
            "llama-3.1-8b:layers=4",
            group=_RANDOM,
        ),
        option(
            "--draft-shape",
            "of the draft, in place of --draft; or of a head of the target's sizes: eagle3:vocab=32000",
            group=_RANDOM,
            metavar="SHAPE",
        ),
        option(
            "--acceptance",
            "add a rule that accepts each draft token with this probability, whatever it is (shapes: 0.8)",
            group=_RANDOM,
            type=float,
        ),
        option(
            "--prompt-tokens",
            "length of the random prompts of a --shape",
            group=_RANDOM,
            type=Whole(),
            default=128,
        ),
        option(
            "--rules",
            "spec strings of rules, with commas (models: exact,kl:0.4); plain always runs",
            type=RULES,
        ),
        option("--batch", "answers decoded side by side, with commas", type=Wholes(), default="1"),
        option("--task", "whose prompts are answered", default="arithmetic"),
        option("--split", "of the task", type=click.Choice(SPLITS), default="test"),
        option("--prompts", "how many, at least one batch of them", type=Whole(), default=4),
        option("--rounds", "samples of everything", type=Whole(), default=7),
        flag("--profile", "also show where a cycle goes, against its floors"),
        option("--out", "where bench.json and table.md go", type=DIR, default="results/bench"),
        *decoding_options(*SAMPLING, "draft_length", "drafter", *CHAT, call="bench"),
    ],
    "  kljudge bench --target embedded\n"
    "  kljudge bench --target big.gguf --draft small.gguf --rules none,exact,kl:0.4 --batch 1,8 --profile\n"
    "  kljudge bench --shape llama-3.1-8b --draft-shape llama-3.2-1b --dtype bfloat16 --acceptance 0.8",
    "nothing is kept of rounds that are not finished: repeat the command, with fewer --rounds if it takes too long",
)
def bench(options) -> int:
    from kljudge_jax.evaluation.bench import run as bench
    from kljudge_jax.evaluation.bench.call import Bench
    from kljudge_jax.verification import parse_verifier

    config = decoding_config(options, batch=None)
    _check_models(options)
    rules = _rules(options)
    parsed = [parse_verifier(rule, config.greedy) for rule in rules]
    if len(rules) > 1:
        check_drafter(config, _has_draft(options), "a --draft or a --draft-shape", parsed)
    folder = results_folder(options.out)
    plan = bench.Plan(rules, options.batch, config, options.rounds)
    pair, prompts, task = _pair_and_prompts(options, plan)
    with Bar() as bar:
        command = shlex.join(["kljudge", *options.words])
        found = Bench(bench.run_bench(pair, prompts, plan, task, command, bar.show))
    found.save(folder, options.profile)
    print(found.markdown(options.profile), end="")
    failed = sum(rule.failed for batch in found.figures.batches for rule in batch.rules)
    return status_of(options, failed)


def _check_models(options) -> None:
    if (options.target is None) == (options.shape is None):
        raise InputError("name one target: a --target, or a --shape with random weights")
    if options.draft is not None and options.draft_shape is not None:
        raise InputError("name one draft: a --draft or a --draft-shape, not both")
    if options.shape is not None and options.draft is not None:
        raise InputError("a --shape has no tokens to share with --draft: name a --draft-shape")
    if options.target == EMBEDDED and options.draft_shape is not None:
        raise InputError("--target embedded brings its own draft: name a --draft, or nothing else")


def _has_draft(options) -> bool:
    return options.target == EMBEDDED or options.draft is not None or options.draft_shape is not None


def _rules(options) -> tuple[str, ...]:
    """Plain decoding, then what was asked for; random weights agree on nothing, so there a fixed rate accepts."""
    random = options.shape is not None or options.draft_shape is not None
    rate = options.acceptance
    if rate is None and random and options.rules is None and _has_draft(options):
        rate = 0.8
    asked = split_specs(options.rules) if options.rules is not None else []
    if options.rules is None and rate is None:
        asked = ["exact", "kl:0.4"] if _has_draft(options) else []
    if rate is not None:
        asked.append(f"synthetic:{rate:g}")
    return tuple(dict.fromkeys(["none", *asked]))


def _pair_and_prompts(options, plan):
    """The models, the prompts, and the name of the task that they are of."""
    from kljudge_jax.evaluation.bench.models import near_prompts, random_pair, random_prompts
    from kljudge_jax.tasks import load_task

    count = max(options.prompts, *plan.batches)
    if options.shape is not None:
        pair = random_pair(
            options.shape,
            options.draft_shape,
            options.dtype,
            placement_of(options),
            plan,
            options.prompt_tokens,
            options.bits,
            options.draft_bits,
        )
        if options.draft_vocab is not None:
            pair = pair.with_draft_vocab(options.draft_vocab)
        prompts = random_prompts(pair, count, options.prompt_tokens, options.seed)
        return pair, prompts, f"random:{options.prompt_tokens}"
    task = load_task(options.task)
    if options.draft_shape is None:
        pair = load_pair(options)
    else:
        from kljudge_jax.evaluation.bench.models import with_random_draft

        pair = load_pair(options, draft_vocab=None)
        pair = with_random_draft(pair, options.draft_shape, placement_of(options), options.draft_bits)
        if options.draft_vocab is not None:
            pair = pair.with_draft_vocab(options.draft_vocab)
    return pair, near_prompts(as_model_reads(task, options.task, pair), options.split, count), task.name

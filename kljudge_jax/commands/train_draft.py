"""`kljudge train-draft`."""

from __future__ import annotations

import click

from kljudge_jax.commands.command import DIR, OK, Whole, argument, command, flag, option
from kljudge_jax.commands.options import (
    RUN_CODE,
    SPLITS,
    as_model_reads,
    decoding_options,
    load_checked_task,
    load_pair,
    model_options,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError
from kljudge_jax.text_table import markdown

_NOT_READ = ("draft", "draft_revision", "draft_bits", "draft_axes", "draft_vocab")


@command(
    "Train an EAGLE-3 head that drafts for a target, on the target's own answers, and write it in the public format.",
    [
        argument("folder", "where to; repeat the command to go on after a kill", type=DIR),
        *(made for made in model_options(hosts=False) if made.name not in _NOT_READ),
        option("--task", "whose prompts: arithmetic, conversion, gsm8k:FILE, ...", required=True),
        RUN_CODE,
        option("--split", "of the task", type=click.Choice(SPLITS), default="train"),
        option("--n", "problems; the last ones are held out", type=Whole(), default=400),
        option(
            "--answers",
            "whose answers it learns from: target writes its own first, greedily; gold takes the task's solutions",
            type=click.Choice(("target", "gold")),
            default="target",
        ),
        option("--max-new-tokens", "the most tokens of an answer of the target's", type=Whole(), default=256),
        *decoding_options("template_args"),
        option("--batch-size", "answers written side by side", type=Whole(), default=16),
        option(
            "--vocab-size",
            "how many tokens it can draft, the most frequent of the answers: 8192, or all of fewer",
            type=Whole(),
        ),
        flag(
            "--vocab-only",
            "write draft_vocab.txt and train nothing: the list that --draft-vocab cuts any draft's head to",
        ),
        option("--layers", "of the target, that it reads: such as 2,14,25; by default 2, n/2 and n-1"),
        option("--passes", "over the answers", type=float, default=1.0),
        option(
            "--train-batch",
            "answers of an optimizer step, a multiple of the devices: 4, or as many more as that takes",
            type=Whole(),
        ),
        option("--steps-ahead", "draft tokens that it learns to write with its own output", type=Whole(), default=3),
        option("--rate", "Adam's learning rate at its peak", type=float, default=3e-4),
        option("--held-out", "answers that are never learnt", type=Whole(), default=32),
        option(
            "--seed",
            "of the problems, of the order, and of what no layer of the target begins",
            type=Whole(0),
            default=0,
        ),
    ],
    "  kljudge train-draft head --target big.gguf --bits file --task gsm8k:train.jsonl --n 1000 --passes 3\n"
    "  kljudge generate --target big.gguf --bits file --draft head/head --draft-bits 4 'What is two and two?'\n"
    "  kljudge train-draft list --target big.gguf --task gsm8k:train.jsonl --answers gold --vocab-only",
    "answers, features and the last checkpoint are in {folder}: repeat the command to go on",
)
def train_draft(options) -> int:
    import jax

    from kljudge_jax.generation.chat_template import TemplateArgs
    from kljudge_jax.training.draft_head import HeadRecipe, check_divides
    from kljudge_jax.training.train_draft import train_draft

    devices = len(jax.devices())
    recipe = HeadRecipe(
        steps_ahead=options.steps_ahead,
        batch_size=options.train_batch or -(-HeadRecipe.batch_size // devices) * devices,
        passes=options.passes,
        rate=options.rate,
        held_out=options.held_out,
        seed=options.seed,
    )
    if not options.vocab_only:
        check_divides(recipe, devices)
    layers = None
    if options.layers is not None:
        parts = options.layers.split(",")
        if not all(part.strip().isdecimal() for part in parts):
            raise InputError(f"--layers are whole numbers such as 2,14,25, not {options.layers!r}")
        layers = tuple(int(part) for part in parts)
    args = TemplateArgs(options.template_args)
    task = load_checked_task(options.task, options.run_code)
    pair = load_pair(options)
    task = as_model_reads(task, options.task, pair, options.run_code)
    with Bar() as bar:
        made = train_draft(
            pair,
            task,
            options.folder,
            recipe,
            split=options.split,
            n=options.n,
            seed=options.seed,
            answers=options.answers,
            draft_vocab=options.vocab_size,
            layers=layers,
            vocab_only=options.vocab_only,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            template_args=args,
            report=bar.show,
        )
    print(f"{made.draft_vocab} tokens, which are {made.covered:.2%} of {made.tokens:,} answer tokens")
    if made.head is None:
        print(f"{options.folder}/draft_vocab.txt")
        return OK
    measured = [line for line in made.curve if line.held_out]
    ahead = range(1, len(measured[-1].held_out) + 1)
    header = ["answer tokens", *(f"right up to {i}" for i in ahead), "mean acceptance length"]
    rows = [
        [f"{line.tokens:,}", *(f"{share:.3f}" for share in line.held_out), f"{line.mean_acceptance_length:.2f}"]
        for line in measured
    ]
    print(markdown([header, *rows]), end="")
    print(f"\n{made.head}")
    return OK

"""`kljudge mine`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from kljudge_jax.commands.command import DIR, FILE, OK, Option, Whole, command, option
from kljudge_jax.commands.options import (
    RUN_CODE,
    SPLITS,
    as_model_reads,
    decoding_options,
    has_draft,
    load_checked_task,
    load_pair,
    model_options,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError

_PROBLEMS = ("split", "n", "seed")
_HOW = ("max_new_tokens", "reference", "shortcut", "batch", "threshold", "window", "rollouts", "temperature")


def _which(name: str, help: str, **settings: Any) -> Option:
    """An option of the kinds of labels that read it. Its default is that of the function that makes them."""
    return option(name, help, group="Which problems, and how (not with marked)", **settings)


@command(
    "Find which of the draft's mismatches change the target's final answer: data for a learned judge.",
    [
        *model_options(),
        option("--task", "arithmetic, conversion, gsm8k:FILE, ..."),
        option(
            "--labels",
            "what says which mismatch matters: AutoJudge's search; SelfJudge's loss of likelihood; Pivot-aware "
            "decoding's sampled rollouts; or marks in answers (Judge Decoding)",
            type=click.Choice(("semi-greedy", "likelihood", "rollouts", "marked")),
            default="semi-greedy",
        ),
        option(
            "--answers",
            "for marked, in place of a task: JSON lines with prompt, answer and wrong_from, the character at which the "
            "first wrong token stands, or null",
            type=FILE,
        ),
        RUN_CODE,
        *decoding_options("template_args"),
        _which("--split", "of the task (train)", type=click.Choice(SPLITS)),
        _which("--n", "problems (1000)", type=Whole()),
        _which("--seed", "of the problems (7)", type=int),
        _which("--max-new-tokens", "the most tokens of an answer (256)", type=int),
        _which(
            "--reference",
            "semi-greedy, rollouts: whose final answer has to stay the same (target)",
            type=click.Choice(("target", "gold")),
        ),
        _which(
            "--shortcut",
            "semi-greedy: a token that the target gives less probability than this is important without a rollout; "
            "AutoJudge's is 0.01, 0 is none (0)",
            type=float,
        ),
        _which("--batch", "semi-greedy: questions in flight (32)", type=int),
        _which(
            "--threshold",
            "likelihood: nats that an important token costs (1); rollouts: the share of them it loses (0.5)",
            type=float,
        ),
        _which("--window", "likelihood: how many later tokens count (20)", type=Whole(0)),
        _which("--rollouts", "rollouts: how many (8)", type=Whole()),
        _which("--temperature", "rollouts: theirs (0.7)", type=float),
        option("--out", "the dataset; repeat the command to go on with it", type=DIR, required=True),
    ],
    "  kljudge mine --target embedded --task arithmetic --n 500 --out mined/arithmetic\n"
    "  kljudge mine --target big.gguf --draft small.gguf --task gsm8k:train.jsonl --n 2000 --out mined/gsm8k\n"
    "  kljudge mine --target embedded --labels likelihood --task arithmetic --out mined/selfjudge\n"
    "  kljudge mine --target big.gguf --draft small.gguf --labels marked --answers marked.jsonl --out mined/marked",
    "every question that is finished is in {out}: repeat the command to go on",
)
def mine(options) -> int:
    from kljudge_jax.generation.chat_template import TemplateArgs
    from kljudge_jax.judges.mining import mine
    from kljudge_jax.judges.semi_greedy import Options
    from kljudge_jax.judges.sources import Likelihood, Rollouts, label_marked_answers, label_mismatches

    if not has_draft(options):
        raise InputError("mining compares two models: name a --draft")
    marked = options.labels == "marked"
    if marked != (options.answers is not None) or marked == (options.task is not None):
        raise InputError("name a --task to mine, or --labels marked with its --answers")
    kinds: dict[str, Any] = {"semi-greedy": Options, "likelihood": Likelihood, "rollouts": Rollouts}
    given = {name: value for name in (*_PROBLEMS, *_HOW) if (value := getattr(options, name)) is not None}
    fields = [] if marked else [field.name for field in dataclasses.fields(kinds[options.labels])]
    unread = sorted(given.keys() - {*fields, *(() if marked else _PROBLEMS)})
    if unread:
        raise InputError(f"--labels {options.labels} does not read --{unread[0].replace('_', '-')}: leave it out")
    problems = {name: given.pop(name) for name in _PROBLEMS if name in given}
    by: Any = None if marked else kinds[options.labels](**given)
    task = None if marked else load_checked_task(options.task, options.run_code)
    told: Any = {"template_args": TemplateArgs(options.template_args)}
    pair = load_pair(options)

    with Bar() as bar:
        if marked:
            data = label_marked_answers(pair, options.answers, options.out, **told, progress=bar.show)
        else:
            task = as_model_reads(task, options.task, pair, options.run_code)
            if isinstance(by, Options):
                data = mine(pair, task, options.out, **problems, options=by, **told, progress=bar.show)
            else:
                data = label_mismatches(pair, task, options.out, by, **problems, **told, progress=bar.show)
    print(
        f"{options.out}: {len(data)} mismatches, {data['important'].mean() if len(data) else 0:.1%} of them important"
    )
    return OK

"""`kljudge mine`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kljudge_jax.commands.options import (
    OK,
    add_models,
    add_run_code,
    as_model_reads,
    command,
    has_draft,
    load_checked_task,
    load_pair,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError

if TYPE_CHECKING:
    from kljudge_jax.judges.dataset import Dataset


def add(commands) -> None:
    parser = command(
        commands,
        "mine",
        _mine,
        "Find which of the draft's mismatches change the target's final answer: data for a learned judge.",
        "  kljudge mine --target embedded --task arithmetic --n 500 --out mined/arithmetic\n"
        "  kljudge mine --target big.gguf --draft small.gguf --task gsm8k:train.jsonl --n 2000 --out mined/gsm8k\n"
        "  kljudge mine --target embedded --labels likelihood --task arithmetic --out mined/selfjudge\n"
        "  kljudge mine --target big.gguf --draft small.gguf --labels marked --answers marked.jsonl --out mined/marked",
        "every question that is finished is in {out}: repeat the command to go on",
    )
    add_models(parser)
    parser.add_argument("--task", metavar="TASK", help="arithmetic, conversion, gsm8k:FILE, ...")
    parser.add_argument(
        "--labels",
        choices=("semi-greedy", "likelihood", "rollouts", "marked"),
        default="semi-greedy",
        help="what says which mismatch matters: AutoJudge's search; SelfJudge's loss of likelihood; Pivot-aware "
        "decoding's sampled rollouts; or marks in answers (Judge Decoding)",
    )
    parser.add_argument(
        "--answers",
        metavar="FILE",
        help="for marked, in place of a task: JSON lines with prompt, answer and wrong_from, the character at which "
        "the first wrong token stands, or null",
    )
    add_run_code(parser)
    which = parser.add_argument_group("which problems, and how (not with marked)")
    which.add_argument("--split", choices=("train", "validation", "test", "all"), help="of the task (train)")
    which.add_argument("--n", metavar="INT", type=int, help="problems (1000)")
    which.add_argument("--seed", metavar="INT", type=int, help="of the problems (7)")
    which.add_argument("--max-new-tokens", metavar="INT", type=int, help="the most tokens of an answer (256)")
    which.add_argument(
        "--reference",
        choices=("target", "gold"),
        help="semi-greedy, rollouts: whose final answer has to stay the same (target)",
    )
    which.add_argument(
        "--shortcut",
        metavar="FLOAT",
        type=float,
        help="semi-greedy: a token that the target gives less probability than this is important without a rollout; "
        "AutoJudge's is 0.01, 0 is none (0)",
    )
    which.add_argument("--batch", metavar="INT", type=int, help="semi-greedy: questions in flight (32)")
    which.add_argument(
        "--threshold",
        metavar="FLOAT",
        type=float,
        help="likelihood: nats that an important token costs (1); rollouts: the share of them it loses (0.5)",
    )
    which.add_argument("--window", metavar="INT", type=int, help="likelihood: how many later tokens count (20)")
    which.add_argument("--rollouts", metavar="INT", type=int, help="rollouts: how many (8)")
    which.add_argument("--temperature", metavar="FLOAT", type=float, help="rollouts: theirs (0.7)")
    parser.add_argument("--out", metavar="DIR", required=True, help="the dataset; repeat the command to go on with it")


# What each kind of labels reads, in the words of the command line and of the functions that make them.
_READS = {
    "semi-greedy": {"split", "n", "seed", "max_new_tokens", "reference", "shortcut", "batch"},
    "likelihood": {"split", "n", "seed", "max_new_tokens", "threshold", "window"},
    "rollouts": {"split", "n", "seed", "max_new_tokens", "reference", "threshold", "rollouts", "temperature"},
    "marked": set(),
}


def _mine(options) -> int:
    from kljudge_jax.evaluation.step import Step
    from kljudge_jax.judges.mining import mine
    from kljudge_jax.judges.semi_greedy import Options
    from kljudge_jax.judges.sources import label_by_likelihood, label_by_rollouts, label_marked_answers

    if not has_draft(options):
        raise InputError("mining compares two models: name a --draft")
    marked = options.labels == "marked"
    if marked != (options.answers is not None) or marked == (options.task is not None):
        raise InputError("name a --task to mine, or --labels marked with its --answers")
    names = sorted(set().union(*_READS.values()))
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    unread = [name for name in given if name not in _READS[options.labels]]
    if unread:
        raise InputError(f"--labels {options.labels} does not read --{unread[0].replace('_', '-')}: leave it out")
    if given.get("n", 1) < 1 or given.get("rollouts", 1) < 1 or given.get("window", 0) < 0:
        raise InputError("--n and --rollouts start at 1, --window at 0")
    problems = {name: given.pop(name) for name in ("split", "n", "seed") if name in given}
    settings = Options(**given) if options.labels == "semi-greedy" else None
    task = None if marked else load_checked_task(options.task, options.run_code)
    pair = load_pair(options)

    with Bar() as bar:
        before: list[int] = []  # questions that an earlier run finished

        def counted(finished, questions):
            before.append(finished - 1)  # told after each question
            bar.show(Step(f"{finished} of {questions} questions", finished, questions, before[0]))

        def searched(progress):
            before.append(progress.finished)  # told first when none is finished yet
            words = f"{progress.finished} of {progress.questions} questions, {progress.mismatches} mismatches"
            bar.show(Step(words, progress.finished, progress.questions, before[0]))

        if marked:
            data = label_marked_answers(pair, options.answers, options.out, progress=counted)
        elif settings is not None:
            task = as_model_reads(task, options.task, pair, options.run_code)
            data = mine(pair, task, options.out, **problems, options=settings, progress=searched)
        else:
            task = as_model_reads(task, options.task, pair, options.run_code)
            makers: dict[str, Callable[..., Dataset]]
            makers = {"likelihood": label_by_likelihood, "rollouts": label_by_rollouts}
            data = makers[options.labels](pair, task, options.out, **problems, **given, progress=counted)
    print(
        f"{options.out}: {len(data)} mismatches, {data['important'].mean() if len(data) else 0:.1%} of them important"
    )
    return OK

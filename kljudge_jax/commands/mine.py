"""`kljudge mine`."""

from __future__ import annotations

import signal
import sys

from kljudge_jax.commands.options import OK, add_models, as_model_reads, command, has_draft, load_pair
from kljudge_jax.errors import InputError


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
    parser.add_argument("--split", default="train", choices=("train", "validation", "test", "all"), help="of the task")
    parser.add_argument("--n", metavar="INT", type=int, default=1000, help="problems")
    parser.add_argument("--seed", metavar="INT", type=int, default=7, help="of the problems")
    parser.add_argument("--max-new-tokens", metavar="INT", type=int, default=256, help="the most tokens of an answer")
    parser.add_argument(
        "--reference", choices=("target", "gold"), default="target", help="whose final answer has to stay the same"
    )
    parser.add_argument(
        "--shortcut",
        metavar="FLOAT",
        type=float,
        default=0.0,
        help="a token that the target gives less probability than this is important without a rollout; "
        "AutoJudge's is 0.01, 0 is none",
    )
    parser.add_argument("--batch", metavar="INT", type=int, default=32, help="questions in flight")
    parser.add_argument("--out", metavar="DIR", required=True, help="the dataset; repeat the command to go on with it")


def _mine(options) -> int:
    from kljudge_jax.judges.mining import Options, mine
    from kljudge_jax.judges.sources import label_by_likelihood, label_by_rollouts, label_marked_answers
    from kljudge_jax.tasks import load_task

    if not has_draft(options):
        raise InputError("mining compares two models: name a --draft")
    if options.n < 1:
        raise InputError("--n starts at 1")
    marked = options.labels == "marked"
    if marked != (options.answers is not None) or marked == (options.task is not None):
        raise InputError("name a --task to mine, or --labels marked with its --answers")
    settings = Options(options.max_new_tokens, options.reference, options.shortcut, options.batch)
    task = None if marked else load_task(options.task)  # a bad one is refused before minutes go into loading a model
    pair = load_pair(options)

    def counted(finished, questions):
        print(f"{finished} of {questions} questions", file=sys.stderr, flush=True)

    problems = {"split": options.split, "n": options.n, "seed": options.seed}
    try:
        if marked:
            data = label_marked_answers(pair, options.answers, options.out, progress=counted)
        else:
            task = as_model_reads(task, options.task, pair)
            if options.labels == "semi-greedy":
                data = mine(
                    pair,
                    task,
                    options.out,
                    **problems,
                    options=settings,
                    progress=lambda progress: print(progress, file=sys.stderr, flush=True),
                )
            else:
                label = {"likelihood": label_by_likelihood, "rollouts": label_by_rollouts}[options.labels]
                held_to = {"reference": options.reference} if options.labels == "rollouts" else {}
                most = options.max_new_tokens
                data = label(pair, task, options.out, **problems, **held_to, max_new_tokens=most, progress=counted)
    except KeyboardInterrupt:
        print(f"\nkljudge mine: stopped; repeat the command to go on in {options.out}", file=sys.stderr)
        return 128 + signal.SIGINT
    print(
        f"{options.out}: {len(data)} mismatches, {data['important'].mean() if len(data) else 0:.1%} of them important"
    )
    return OK

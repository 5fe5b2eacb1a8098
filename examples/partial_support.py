"""Three divergences as a judge's test where the draft knows half of the tokens: what each keeps, and at what price.

The embedded pair, its draft's head cut to the more frequent half of the tokens that worked solutions of the tasks'
train splits have. (They have a third of its vocabulary: a cut to half of that would change nothing.) The three rules
differ in the divergence alone: each accepts what the strict rule accepts, and a mismatch where the target's top
probability is 0.9 or less and the divergence is below the threshold. Answers are kept in a folder, so that a run that
was stopped goes on.

    python examples/partial_support.py results/partial_support
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax

import kljudge_jax as kj
from kljudge_jax.evaluation.report.statistics import mcnemar, paired_difference, ratio_interval
from kljudge_jax.evaluation.sweep.records import AnswerRecord
from kljudge_jax.evaluation.sweep.run import read_records
from kljudge_jax.text_table import markdown
from kljudge_jax.training.draft_vocab import count_tokens, most_frequent, share_covered
from kljudge_jax.verification.distributions import js_divergence, total_variation
from kljudge_jax.verification.parameters import first_tokens, number, probability
from kljudge_jax.verification.rule import ThresholdRule

TASKS = ("arithmetic", "conversion")
THRESHOLDS = {
    "kl": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0),
    "js": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
    "tv": (0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5),
}


class _Divergence(ThresholdRule):
    """KLJudge with another divergence, of logits f32 `[K, V]` twice to `[K]`."""

    source = "an example"
    divergence = staticmethod(js_divergence)

    def passes(self, inputs: kj.VerifyInputs) -> jax.Array:
        count = inputs.draft_tokens.shape[0]
        return self.divergence(inputs.raw_target_logits[:count], inputs.raw_draft_logits) < self.threshold


@kj.register
@dataclasses.dataclass(frozen=True)
class JSJudge(_Divergence):
    """By Jensen-Shannon, 0 to ln 2."""

    threshold: float = number(relaxes="up")
    confidence: float = probability(0.9)
    first: int = first_tokens()
    spec_name = "js-judge"


@kj.register
@dataclasses.dataclass(frozen=True)
class TVJudge(_Divergence):
    """By total variation, 0 to 1."""

    threshold: float = number(relaxes="up")
    confidence: float = probability(0.9)
    first: int = first_tokens()
    spec_name = "tv-judge"
    divergence = staticmethod(total_variation)


RULES = {"kl": lambda threshold: kj.KLJudge(threshold, first=0), "js": JSJudge, "tv": TVJudge}


def half_of_the_tokens(pair: kj.ModelPair, problems: int = 5000) -> tuple[list[int], float]:
    """The more frequent half of the tokens that solutions have, and what share of their text it is."""
    solved = [kj.load_task(name).problems(split="train", n=problems, seed=7) for name in TASKS]
    solutions = [problem.solution for task in solved for problem in task]
    counts = count_tokens(solutions, pair.tokenizer, pair.target.vocab_size)
    ids = most_frequent(counts, int((counts > 0).sum()) // 2, always=pair.eos)
    return ids, share_covered(counts, ids)


def answers(pair: kj.ModelPair, task: str, n: int, folder: Path, batch: int = 250) -> dict[str, list[AnswerRecord]]:
    """The answers to a task under every rule and threshold, "plain" and "exact" beside them, problem by problem."""
    rules = [RULES[name](threshold) for name, thresholds in THRESHOLDS.items() for threshold in thresholds]
    kj.sweep(
        pair,
        kj.load_task(task),
        ["none", "exact", *rules],
        n=n,
        examples=0,
        folder=folder,
        batch=batch,
        max_new_tokens=160,
        report=lambda line: print(line, flush=True),
    )
    by_rule: dict[str, list[AnswerRecord]] = {}
    for record in sorted(read_records(folder / "answers.jsonl"), key=lambda record: record.problem):
        by_rule.setdefault(record.rule, []).append(record)
    return by_rule


def table(by_rule: dict[str, list[AnswerRecord]]) -> str:
    """Of every rule accuracy, its difference from plain decoding's, and the mean acceptance length."""
    plain = [record.right for record in by_rule["none"]]
    rows = [["rule", "right", "points from plain (95 %)", "p", "mean acceptance length (95 %)"]]
    for rule, records in by_rule.items():
        right = [record.right for record in records]
        difference, (low, high) = paired_difference(right, plain)
        tokens, cycles = ([getattr(record, name) for record in records] for name in ("tokens", "cycles"))
        shortest, longest = ratio_interval(tokens, cycles)
        rows.append(
            [
                rule,
                f"{sum(right)} of {len(right)}",
                f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{mcnemar(right, plain):.2g}",
                f"{sum(tokens) / sum(cycles):.2f} ({shortest:.2f} to {longest:.2f})",
            ]
        )
    return markdown(rows)


def main() -> None:
    """Runs both tasks and prints a table of each."""
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "results/partial_support")
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    whole = kj.ModelPair.embedded()
    ids, share = half_of_the_tokens(whole)
    print(f"{len(ids)} of {whole.target.vocab_size} tokens, which are {share:.2%} of the solutions'")
    half = whole.with_draft_vocab(ids)
    for task in TASKS:
        print(f"\n{task}\n\n{table(answers(half, task, n, where / task))}", flush=True)


if __name__ == "__main__":
    main()

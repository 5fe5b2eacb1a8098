"""Is there a training-free rule whose accuracy at a mean acceptance length lies above KL's? What was tried, and found.

Signals of one position, alone and together: KL(target, draft); the regret, the target's top logit less that of the
draft token, so that a bound of -ln(c) is the ratio test p(d) >= c max p of `lenience:c`; how far the rest of the draft
goes on to be accepted; whether the target's own argmax is met again in the next positions; whether either token is a
digit. Every rule also accepts what the strict rule accepts, and judges the first token of an answer.

A setting is chosen on validation problems: the most relaxed whose 95 % bound of the loss against plain decoding is at
most a point. Test problems are then answered once, by what was chosen. Answers are kept in the folder, so that a run
that was stopped goes on.

    python examples/beyond_kl.py results/beyond_kl                  # all tries, on validation problems
    python examples/beyond_kl.py results/beyond_kl --split test     # KL, the ratio test and the union, as chosen
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import kljudge_jax as kj
from kljudge_jax.evaluation.report.statistics import paired_difference, ratio_interval
from kljudge_jax.evaluation.sweep.records import AnswerRecord
from kljudge_jax.evaluation.sweep.run import read_records
from kljudge_jax.text_table import markdown
from kljudge_jax.verification.distributions import is_argmax, kl_on_support
from kljudge_jax.verification.parameters import integer, number, probability
from kljudge_jax.verification.rule import ThresholdRule

ANY = 1e9  # a bound that nothing reaches


def regret(inputs: kj.VerifyInputs) -> jax.Array:
    """How far the draft token's logit is below the target's top one, f32 `[K]`."""
    logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
    return jnp.max(logits, -1) - jnp.take_along_axis(logits, inputs.draft_tokens[:, None], -1)[:, 0]


def run_after(accepted: jax.Array) -> jax.Array:
    """How many positions right after each are accepted, one after another: bool `[K]` to int32 `[K]`."""

    def step(run: jax.Array, accepted: jax.Array) -> tuple[jax.Array, jax.Array]:
        run = jnp.where(accepted, run + 1, 0)
        return run, run

    _, runs = jax.lax.scan(step, jnp.int32(0), accepted[::-1])
    return jnp.append(runs[::-1][1:], 0)


class _Judge(ThresholdRule):
    source = "an example"


@kj.register
@dataclasses.dataclass(frozen=True)
class Signals(_Judge):
    """KL and regret below their bounds.

    Attributes:
      gain: both bounds grow by (1 + run) ** gain, run the accepted tokens that would follow.
      window: so many of the tokens that follow have to be the target's argmax.
      mix: above 0, what is bounded is KL + mix * regret.
    """

    threshold: float = number(relaxes="up")
    regret: float = number(ANY)
    gain: float = number(0.0)
    window: int = integer(0, minimum=0)
    mix: float = number(0.0)
    confidence: float = probability(0.9)
    spec_name = "signals"

    def passes(self, inputs: kj.VerifyInputs) -> jax.Array:
        count = inputs.draft_tokens.shape[0]
        drafted = jnp.arange(count) < inputs.draft_count
        match = is_argmax(inputs.raw_target_logits[:count], inputs.draft_tokens) & drafted
        below = regret(inputs)
        score = kl_on_support(inputs.raw_target_logits, inputs.raw_draft_logits) + self.mix * below
        alone = (score < self.threshold) & (below < self.regret) & drafted
        scale = (1.0 + run_after(match | alone)) ** self.gain
        left = jnp.maximum(inputs.draft_count - 1 - jnp.arange(count), 0)
        met_again = run_after(match) >= jnp.minimum(self.window, left)
        return (score < self.threshold * scale) & (below < self.regret * scale) & met_again


@kj.register
@dataclasses.dataclass(frozen=True)
class Either(_Judge):
    """KL or regret below its bound."""

    threshold: float = number(relaxes="up")
    regret: float = number(relaxes="up")
    confidence: float = probability(0.9)
    spec_name = "either"

    def passes(self, inputs: kj.VerifyInputs) -> jax.Array:
        divergence = kl_on_support(inputs.raw_target_logits, inputs.raw_draft_logits)
        return (divergence < self.threshold) | (regret(inputs) < self.regret)


@kj.register
@dataclasses.dataclass(frozen=True, eq=False)
class Guarded(_Judge):
    """KL and regret below their bounds, and strict where the draft's token or the target's is one of `strict` `[V]`."""

    strict: jax.Array
    threshold: float = number(relaxes="up")
    regret: float = number(ANY)
    strict_threshold: float = number(0.0)
    confidence: float = probability(0.9)
    spec_name = "guarded"

    def passes(self, inputs: kj.VerifyInputs) -> jax.Array:
        logits = inputs.raw_target_logits[: inputs.draft_tokens.shape[0]]
        guarded = self.strict[inputs.draft_tokens] | self.strict[jnp.argmax(logits, -1)]
        threshold = jnp.where(guarded, self.strict_threshold, self.threshold)
        divergence = kl_on_support(inputs.raw_target_logits, inputs.raw_draft_logits)
        return (divergence < threshold) & (regret(inputs) < self.regret)


def ratio(factor: float) -> float:
    """The regret of a token with `factor` of the top probability."""
    return -math.log(factor)


def tries(pair: kj.ModelPair) -> dict[str, kj.Rule]:
    """Every rule of ours that was tried, in that order."""
    assert pair.tokenizer is not None
    written = [pair.tokenizer.decode([token]) for token in range(pair.target.vocab_size)]
    digits, operators = (
        jnp.asarray(np.array([any(sign in signs for sign in text) for text in written]))
        for signs in ("0123456789", "0123456789+-*/=%$<>")
    )
    return {
        "all but digits": Guarded(digits, ANY, confidence=1.0),
        "all but digits and operators": Guarded(operators, ANY, confidence=1.0),
        "all but digits, these by kl 1": Guarded(digits, ANY, strict_threshold=1.0),
        "kl 0.4 and regret 0.7": Signals(0.4, regret=0.7),
        "kl 0.1 and regret 0.7": Signals(0.1, regret=0.7),
        "kl 0.4 and regret 0.22": Signals(0.4, regret=0.22),
        "kl 0.05 and regret 0.22": Signals(0.05, regret=0.22),
        "kl + regret 0.3": Signals(0.3, mix=1.0),
        "kl + regret / 2 0.15": Signals(0.15, mix=0.5),
        "kl 0.4 and regret 0.15, gain 0.5": Signals(0.4, regret=0.15, gain=0.5),
        "regret 0.08, gain 1": Signals(ANY, regret=0.08, gain=1.0, confidence=1.0),
        "kl 0.4 and regret 0.7, window 1": Signals(0.4, regret=0.7, window=1),
        "kl 0.05 and regret 0.15, gain 1": Signals(0.05, regret=0.15, gain=1.0),
        "kl 0.4 and regret 0.7, window 2": Signals(0.4, regret=0.7, window=2),
        "kl 0.1 or ratio 0.5": Either(0.1, regret=ratio(0.5)),
        "kl 0.2 or ratio 0.5": Either(0.2, regret=ratio(0.5)),
        "kl 0.1 or ratio 0.7": Either(0.1, regret=ratio(0.7)),
        "kl 0.2 or ratio 0.7": Either(0.2, regret=ratio(0.7)),
        "kl 0.02 or ratio 0.75": Either(0.02, regret=ratio(0.75)),
    }


def known(task: str) -> dict[str, str | kj.Rule]:
    """KL and the ratio test beside them."""
    thresholds = (0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.4) + ((0.5, 0.6, 0.8) if task == "conversion" else ())
    factors = (0.8, 0.75, 0.7, 0.5) + ((0.4, 0.3) if task == "conversion" else ())
    of_kl: dict[str, str | kj.Rule] = {f"kl {threshold}": kj.KLJudge(threshold, first=0) for threshold in thresholds}
    return of_kl | {f"ratio {factor}": f"lenience:{factor}" for factor in factors}


CHOSEN: dict[str, dict[str, str | kj.Rule]] = {
    "arithmetic": {
        "kl": kj.KLJudge(0.04, first=0),
        "ratio": "lenience:0.75",
        "either": Either(0.02, regret=ratio(0.75)),
    },
    "conversion": {
        "kl": kj.KLJudge(0.4, first=0),
        "ratio": "lenience:0.4",
        "either": Either(0.2, regret=ratio(0.5)),
    },
}


def answers(pair: kj.ModelPair, task: str, rule: str | kj.Rule, folder: Path, **options) -> list[AnswerRecord]:
    """The answers to a task under a rule, by problem."""
    kj.sweep(
        pair,
        kj.load_task(task),
        [rule],
        examples=0,
        folder=folder,
        batch=250,
        max_new_tokens=160,
        report=lambda line: print(line, flush=True),
        **options,
    )
    return sorted(read_records(folder / "answers.jsonl"), key=lambda record: record.problem)


def length(records: list[AnswerRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and cycles of every answer, whose sums have the mean acceptance length as their ratio."""
    return np.array([record.tokens for record in records]), np.array([record.cycles for record in records])


def longer(ours: list[AnswerRecord], theirs: list[AnswerRecord], draws: int = 2000) -> tuple[float, float, float]:
    """By how much our mean acceptance length is above theirs on the same problems, and its 95 % bootstrap interval."""
    counts = np.stack([*length(ours), *length(theirs)])
    problems = np.random.default_rng(0).integers(0, counts.shape[1], (draws, counts.shape[1]))
    sums = np.stack([counts.sum(1), *(counts[:, drawn].sum(1) for drawn in problems)])
    differences = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    low, high = np.percentile(differences[1:], [2.5, 97.5])
    return float(differences[0]), float(low), float(high)


def table(found: dict[str, list[AnswerRecord]], plain: list[AnswerRecord], beside: str | None) -> str:
    """Of each rule the accuracy, its difference from plain decoding's, and the mean acceptance length."""
    head = ["rule", "right", "points from plain (95 %)", "mean acceptance length (95 %)"]
    rows = [head + ([f"longer than {beside} (95 %)"] if beside else [])]
    for name, records in found.items():
        right = [record.right for record in records]
        difference, (low, high) = paired_difference(right, [record.right for record in plain])
        tokens, cycles = length(records)
        shortest, longest = ratio_interval(tokens.tolist(), cycles.tolist())
        row = [
            name,
            f"{sum(right)} of {len(right)}",
            f"{100 * difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
            f"{tokens.sum() / cycles.sum():.2f} ({shortest:.2f} to {longest:.2f})",
        ]
        if beside:
            row.append("{:+.3f} ({:+.3f} to {:+.3f})".format(*longer(records, found[beside])))
        rows.append(row)
    return markdown(rows)


def main() -> None:
    """Runs both tasks and prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--n", type=int, nargs=2, metavar=("ARITHMETIC", "CONVERSION"), help="problems of each task")
    parser.add_argument("--seed", type=int, help="of the problems; 19 on validation and 29 on test")
    options = parser.parse_args()
    pair = kj.ModelPair.embedded()
    counts = options.n or {"validation": (8000, 1900), "test": (8000, 3000)}[options.split]
    seed = {"validation": 19, "test": 29}[options.split] if options.seed is None else options.seed
    for (task, chosen), n in zip(CHOSEN.items(), counts, strict=True):
        rules = chosen if options.split == "test" else {**known(task), **tries(pair)}
        where = options.folder / options.split / task
        told = {
            name: answers(pair, task, rule, where / name.replace("/", "over"), n=n, seed=seed, split=options.split)
            for name, rule in {"none": "none", **rules}.items()
        }
        plain = told.pop("none")
        print(f"\n{task}\n\n{table(told, plain, 'kl' if options.split == 'test' else None)}", flush=True)


if __name__ == "__main__":
    main()

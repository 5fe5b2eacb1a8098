"""What an adaptive draft length loses where no draft pays: `python tests/decoding/bench_adaptive.py TARGET DRAFT`.

Plain decoding, adaptive lengths by measured costs and by size, and eight tokens always take turns, a round of the same
prompts after another. Give it a pair that never agrees (`tests/evaluation/make_agreeing_pair.py --factor 1.0`): the
promise is that an adaptive length is then never slower than plain decoding by more than 3 %.
"""

import argparse
import time

import jax

from kljudge_jax import Adaptive, ModelPair, generate
from kljudge_jax.evaluation.machine import describe_machine
from kljudge_jax.evaluation.statistics import ratio_interval
from kljudge_jax.evaluation.text_table import markdown
from kljudge_jax.tasks.load import load_task

CELLS = {
    "plain": (None, 8),
    "adaptive, measured": ("exact", Adaptive(maximum=8)),
    "adaptive, by size": ("exact", Adaptive(maximum=8, cost="size")),
    "8 always": ("exact", 8),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--task", default="arithmetic", help="whose prompts are answered")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    pair = ModelPair.from_pretrained(options.target, options.draft, dtype=options.dtype)
    problems = load_task(options.task).problems("test", n=options.rounds + 1)
    seconds = {name: [] for name in CELLS}
    passes = {}
    for turn, problem in enumerate(problems):  # the first compiles, and is thrown away
        for name, (verifier, length) in CELLS.items():
            began = time.perf_counter()
            done = generate(
                pair,
                [problem.prompt],
                verifier=verifier,
                draft_length=length,
                max_new_tokens=options.max_new_tokens,
                key=jax.random.key(turn),
            )
            taken = time.perf_counter() - began
            tokens = len(done.tokens[0])
            print(f"round {turn}, {name}: {tokens} tokens in {taken:.2f} s", flush=True)
            if turn:
                seconds[name].append(taken / tokens)
                passes.setdefault(name, []).append(tokens / done.stats.rows[0].cycles)
    rows = []
    for name, taken in seconds.items():
        low, high = ratio_interval(seconds["plain"], taken)
        ratio = sum(seconds["plain"]) / sum(taken)
        rows.append([name, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{sum(passes[name]) / len(passes[name]):.2f}"])
    print(describe_machine())
    print(markdown([["", "x plain", "95 %", "tokens per pass"], *rows]))


if __name__ == "__main__":
    main()

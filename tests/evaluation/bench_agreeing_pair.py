"""Exact decoding beside Transformers' assisted generation at a given acceptance, on random weights of a known shape.

`python tests/evaluation/bench_agreeing_pair.py --shape llama-3.1-8b --cells plain:1,exact:5:1,plain:32,hf,assisted:5`

As in `make_agreeing_pair.py`, acceptance is in the weights, so that both engines keep the same tokens: the draft is the
first layers of the target, and what the target's later layers add is made smaller. What such a target writes means
nothing; both engines pay for all of both models. Cells take turns, a round after another, each round with prompts of
its own; prompts are included in the time. Prints a table, and writes it with all samples as JSON after every round.

A cell is `plain:B` or `exact:K:B`, ours with B answers side by side and K draft tokens, `hf` or `assisted:K`.
"""

import argparse
import json
import re
import time
from pathlib import Path

import jax
import numpy as np
from make_agreeing_pair import agreeing

from kljudge_jax import DecodingConfig, ModelPair, generate
from kljudge_jax.evaluation.baselines.base import Request
from kljudge_jax.evaluation.baselines.hugging_face import HFAssisted, HFGenerate
from kljudge_jax.evaluation.report.statistics import speed_ratio_interval
from kljudge_jax.machine import describe_machine
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.shapes import random_model, shape_config
from kljudge_jax.text_table import markdown

PLAIN = "plain:1"


def cell(word, pair, new):
    """Batch size of a cell, and what answers prompts there: tokens a row, and target passes."""
    name, *sizes = word.split(":")
    sizes = [int(size) for size in sizes]

    def ours(prompts, key):
        verifier, length = (None, 8) if name == "plain" else ("exact", sizes[0])
        done = generate(pair, prompts, verifier=verifier, draft_length=length, max_new_tokens=new, key=key)
        return done.tokens, sum(row.cycles for row in done.stats.rows)

    def theirs(prompts, key):
        baseline, length = (HFGenerate(), 8) if name == "hf" else (HFAssisted(), sizes[0])
        answers = baseline.answer(
            pair, prompts, Request(DecodingConfig(new, draft_length=length), jax.random.split(key, 1))
        )
        return [answer.tokens for answer in answers], sum(answer.stats.cycles for answer in answers)

    return (sizes[-1], ours) if name in ("plain", "exact") else (1, theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--layers", type=int, default=4, help="of the draft")
    parser.add_argument("--factor", type=float, default=0.008, help="of what the target's later layers add")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cells", default="plain:1,exact:5:1,hf,assisted:5", help="with commas; plain:1 is the first")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further round after so many")
    parser.add_argument("--out", type=Path, default=Path("results/agreeing.json"))
    options = parser.parse_args()
    words = options.cells.split(",")
    known = re.compile(r"plain:\d+|exact:\d+:\d+|hf|assisted:\d+")
    if words[0] != PLAIN or not all(map(known.fullmatch, words)):
        parser.error(f"cells are plain:B, exact:K:B, hf and assisted:K, and {PLAIN} is the first")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    whole = random_model(shape_config(options.shape), Storage(options.dtype))
    target, draft = agreeing(whole, options.layers, options.factor)
    del whole
    pair = ModelPair(target, draft, None, (), options.shape, f"{options.shape}:layers={options.layers}")
    cells = {word: cell(word, pair, options.max_new_tokens) for word in words}
    most = max(batch for batch, _ in cells.values())
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    figures = {"machine": describe_machine().to_dict(), "options": asked}
    draws = np.random.default_rng(0)
    samples = {word: [] for word in cells}
    for turn in range(options.rounds + 1):  # the first compiles, and is thrown away
        if turn > 1 and time.perf_counter() - began > options.seconds:
            break
        drawn = draws.integers(0, pair.target.config.vocab_size, (most, options.prompt_tokens))
        prompts, first = list(drawn.astype(np.int32)), {}
        for word, (batch, run) in cells.items():
            start = time.perf_counter()
            tokens, cycles = run(prompts[:batch], jax.random.key(turn))
            seconds = time.perf_counter() - start
            print(f"round {turn}, {word}: {seconds:.2f} s", flush=True)
            first.setdefault(batch, [row.tolist() for row in tokens])
            if turn:
                same = sum(row.tolist() == other for row, other in zip(tokens, first[batch], strict=True))
                samples[word].append(
                    {"tokens": sum(map(len, tokens)), "cycles": int(cycles), "seconds": seconds, "same_as_first": same}
                )
        if turn:
            rows = {word: row_of(samples, word) for word in cells}
            options.out.write_text(json.dumps({**figures, "rows": rows, "samples": samples}, indent=1) + "\n")
    heads = list(rows[PLAIN])
    print(markdown([["", *heads], *([word, *(str(row[head]) for head in heads)] for word, row in rows.items())]))


def row_of(samples, name):
    """Speed and acceptance of a cell, and its speed beside plain decoding of one answer in the same rounds."""
    own, plain = samples[name], samples[PLAIN]
    tokens, seconds = (sum(s[k] for s in own) for k in ("tokens", "seconds"))
    each = [np.array([s[k] for s in some], float) for some in (own, plain) for k in ("tokens", "seconds")]
    low, high = speed_ratio_interval(each[:2], each[2:])
    ratio = tokens / seconds / (each[2].sum() / each[3].sum())
    return {
        "rounds": len(own),
        "tokens/s": f"{tokens / seconds:.1f}",
        "mean acceptance length": f"{tokens / sum(s['cycles'] for s in own):.2f}",
        "speedup (95 %)": f"{ratio:.2f} ({low:.2f} to {high:.2f})",
        "same text as the first cell of its batch": sum(s["same_as_first"] for s in own),
    }


if __name__ == "__main__":
    main()

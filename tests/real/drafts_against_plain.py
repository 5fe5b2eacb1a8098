"""How fast real models answer with drafts of several kinds, beside plain decoding, question by question in turns.

    python tests/real/drafts_against_plain.py --models DIR --gsm8k test.jsonl --head HEAD --draft-vocab ids.txt \
        --out results/drafts.json plain model/exact/3 ranked/exact/4 head/exact/4 head/kl:0.4/5

A way is a draft (`model`, `ranked`: the model with its head cut to the list, `head`: an EAGLE-3 head in 4 bits), a
rule and a draft length. Every question is answered in all ways, in an order of its own, before the next one; with what
is there already it goes on where it ended. The table has the speedup over plain decoding as a geometric mean over
questions, with a bootstrap interval of 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

import kljudge_jax as kj
from kljudge_jax.text_table import markdown

TARGET, DRAFT = (f"qwen2.5-coder-{size}b-instruct-q4_k_m.gguf" for size in ("1.5", "0.5"))
PLAIN = "plain"


def pairs_of(options: argparse.Namespace) -> dict[str, kj.ModelPair]:
    """A pair for each kind of draft; all have one target."""
    kept: dict[str, Any] = {"dtype": "bfloat16", "bits": "file"}
    model = kj.ModelPair.from_pretrained(options.models / TARGET, options.models / DRAFT, draft_bits="file", **kept)
    pairs = {PLAIN: model, "model": model}
    if options.draft_vocab is not None:
        pairs["ranked"] = model.with_draft_vocab(options.draft_vocab)
    if options.head is not None:
        head = kj.ModelPair.from_pretrained(options.models / TARGET, options.head, draft_bits=4, **kept).draft
        pairs["head"] = dataclasses.replace(model, draft=head)
    return pairs


def answer(pairs: dict[str, kj.ModelPair], way: str, prompt: Any, new: int) -> dict[str, Any]:
    """What one way makes of one question."""
    name, *rest = way.split("/")
    how: dict[str, Any] = {"verifier": None} if not rest else {"verifier": rest[0], "draft_length": int(rest[1])}
    row = (out := kj.generate(pairs[name], [prompt], max_new_tokens=new, **how)).stats.rows[0]
    return {
        "seconds": row.seconds,  # compilation is left out
        "prefill": row.prefill_seconds,
        "tokens": np.asarray(out.tokens[0]).tolist(),
        "cycles": row.cycles,
        "relaxed": row.relaxed,
        "accepted": np.asarray(row.acceptance_histogram).tolist(),
    }


def table(found: list[dict[str, Any]]) -> str:
    """A row for each way; the prompt's time is in the first speedup and left out of the second."""
    header = [
        "way",
        "tokens/s",
        "speedup over plain (95 %)",
        "of decoding alone",
        "mean acceptance length",
        "ms a cycle",
    ]
    rows = []
    for way in found[0]:
        cycles = sum(one[way]["cycles"] for one in found)
        alone = sum(one[way]["seconds"] - one[way]["prefill"] for one in found)
        tokens = sum(len(one[way]["tokens"]) for one in found)
        rows.append(
            [
                way,
                f"{tokens / sum(one[way]['seconds'] for one in found):.1f}",
                speedup([rate(one[way], 0) / rate(one[PLAIN], 0) for one in found]),
                speedup([rate(one[way], 1) / rate(one[PLAIN], 1) for one in found]),
                f"{tokens / cycles:.2f}",
                f"{1000 * alone / cycles:.1f}",
                f"{sum(one[way]['tokens'] == one[PLAIN]['tokens'] for one in found)} of {len(found)}",
            ]
        )
    return markdown([[*header, "as plain"], *rows])


def rate(answer: dict[str, Any], without: float) -> float:
    """Tokens a second, `without` the prompt's time or with it."""
    return len(answer["tokens"]) / (answer["seconds"] - without * answer["prefill"])


def speedup(ratios: list[float]) -> str:
    """Geometric mean, and a bootstrap interval over questions."""
    logs, random = np.log(ratios), np.random.default_rng(0)
    means = [np.exp(logs[random.integers(0, len(logs), len(logs))].mean()) for _ in range(4000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{np.exp(logs.mean()):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+", help=f"{PLAIN}, or draft/rule/length; plain is needed")
    parser.add_argument("--models", type=Path, required=True, help=f"folder of {TARGET} and {DRAFT}")
    parser.add_argument("--gsm8k", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--head", type=Path, help="folder of an EAGLE-3 head of the target")
    parser.add_argument("--draft-vocab", type=Path, help="list of tokens for `ranked`")
    parser.add_argument("--out", type=Path, required=True, help="file of results")
    parser.add_argument("--n", type=int, default=20, help="questions")
    parser.add_argument("--first", type=int, default=0, help="questions that are passed over")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    options = parser.parse_args()
    pairs = pairs_of(options)
    problems = kj.load_task(f"gsm8k:{options.gsm8k}").problems(split="test", n=options.first + options.n, seed=7)
    prompts = [problem.prompt for problem in problems][options.first :]
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    if len(found) < len(prompts):
        for way in options.ways:
            answer(pairs, way, prompts[0], options.max_new_tokens)  # compiles
    for index in range(len(found), len(prompts)):
        order = np.random.default_rng(index).permutation(len(options.ways))
        one = {options.ways[i]: answer(pairs, options.ways[i], prompts[index], options.max_new_tokens) for i in order}
        found.append({way: one[way] for way in options.ways})
        options.out.write_text(json.dumps(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()

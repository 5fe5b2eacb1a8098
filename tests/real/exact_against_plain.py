"""How many answers of real models `exact` writes as plain decoding does, token for token, and in what time.

    python tests/real/exact_against_plain.py --models DIR --gsm8k test.jsonl --out results/exact

With what is there already it goes on where it ended, block of questions by block, and then prints the table; `--mesh`
and KLJUDGE_NATIVE=0 ask the same of XLA's products. A block's answers by all rules are written one after another, so
that the times of a row of the table were taken side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import kljudge_jax as kj
from kljudge_jax.kernels.cpu_library import library

TARGET, DRAFT = (f"qwen2.5-coder-{size}b-instruct-q4_k_m.gguf" for size in ("1.5", "0.5"))
RULES: list[tuple[str | None, int]] = [(None, 3), ("exact", 3), ("exact", 8)]


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def run(options: argparse.Namespace, precision: str, batch: int, prompts: list[str], loaded: dict[str, Any]) -> Path:
    """Fills the file of one precision and batch, and returns it."""
    path = options.out / f"{precision}_batch{batch}.json"
    blocks = read(path)
    for first in range(len(blocks) * options.block, len(prompts), options.block):
        if precision not in loaded:
            loaded.clear()  # two precisions of a model may not fit
            bits = "file" if precision == "file" else None
            loaded[precision] = kj.ModelPair.from_pretrained(
                options.models / TARGET,
                options.models / DRAFT,
                dtype="bfloat16" if precision == "file" else precision,
                bits=bits,
                draft_bits=bits,
                mesh=options.mesh,
            )
        part = prompts[first : first + options.block]
        block: dict[str, Any] = {}
        for rule, length in RULES:
            started = time.perf_counter()
            out = kj.generate(
                loaded[precision],
                part,
                verifier=rule,
                draft_length=length,
                max_new_tokens=options.max_new_tokens,
                batch_size=batch,
            )
            seconds = time.perf_counter() - started
            assert out.stats.failed == 0, "a model returned what is no number"
            answers = [np.asarray(answer).tolist() for answer in out.tokens]
            block[f"{rule or 'none'} {length}"] = {"tokens": answers, "seconds": seconds}
        blocks.append(block)
        path.write_text(json.dumps(blocks), encoding="utf-8")
        print(line(path), flush=True)
    return path


def line(path: Path) -> str:
    """A row of the table: of each way how many answers are those of plain decoding, and its part of plain's time."""
    blocks = read(path)
    plain, *others = blocks[0]
    count = sum(len(block[plain]["tokens"]) for block in blocks)
    written = sum(len(answer) for block in blocks for answer in block[plain]["tokens"])
    found = [f"{path.stem:20} {count} answers, {written} tokens"]
    for other in others:
        pairs = [pair for block in blocks for pair in zip(block[plain]["tokens"], block[other]["tokens"], strict=True)]
        alike = sum(a == b for a, b in pairs)
        times = [sum(block[way]["seconds"] for block in blocks) for way in (plain, other)]
        found.append(f"{other}: {alike} of {count} alike, {times[0] / times[1]:.2f} times plain's speed")
    return "; ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help=f"folder of {TARGET} and {DRAFT}")
    parser.add_argument("--gsm8k", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--n", type=int, default=100, help="questions")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--block", type=int, default=16, help="questions that are written at a time")
    parser.add_argument("--batches", default="8,1")
    parser.add_argument("--precisions", default="file,bfloat16,float32")
    parser.add_argument("--mesh", help="such as tensor=2")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(library().reason, flush=True)
    problems = kj.load_task(f"gsm8k:{options.gsm8k}").problems(split="test", n=options.n, seed=7)
    loaded: dict[str, Any] = {}
    paths = [
        run(options, precision, int(batch), [problem.prompt for problem in problems], loaded)
        for batch in options.batches.split(",")
        for precision in options.precisions.split(",")
    ]
    print("\n".join(line(path) for path in paths))


if __name__ == "__main__":
    main()

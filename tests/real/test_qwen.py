"""The promise of greedy decoding, kept on real weights: Qwen2.5-Coder 1.5B with its 0.5B draft, on GSM8K."""

import os
from pathlib import Path

import numpy as np
import pytest

import kljudge_jax as kj
from kljudge_jax.decoding.prompts import tokenize

pytestmark = pytest.mark.real

PROBLEMS, BATCH = 30, 15
NEAR_TIE = 1e-3  # in logits: what the order of float32 sums can move


@pytest.fixture(scope="module")
def pair(models_dir):
    folder = Path(models_dir)
    return kj.ModelPair.from_pretrained(
        folder / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        folder / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        dtype="float32",
    )


@pytest.fixture(scope="module")
def problems():
    path = os.environ.get("KLJUDGE_GSM8K")
    if not path:
        pytest.skip("set KLJUDGE_GSM8K to GSM8K's test.jsonl")
    return kj.load_task(f"gsm8k:{path}").problems(split="test", n=PROBLEMS, seed=7)


def top_two(pair, prompt, tokens):
    """The target's two likeliest tokens after prompt and tokens, and by how much the first leads, in logits."""
    sequence = np.concatenate([tokenize(prompt, pair.tokenizer, pair.target.config.vocab_size), tokens])
    padded = np.zeros((1, -(-len(sequence) // 128) * 128), np.int32)
    padded[0, : len(sequence)] = sequence
    logits = np.asarray(kj.score(pair.target, padded)[0][0, len(sequence) - 1])
    first, second = np.argsort(-logits, kind="stable")[:2]
    return {int(first), int(second)}, float(logits[first] - logits[second])


def first_difference(ours, theirs):
    """Where two answers part; one that goes on after the other's end parts from it there."""
    shared = min(len(ours), len(theirs))
    differing = np.flatnonzero(ours[:shared] != theirs[:shared])
    return int(differing[0]) if differing.size else shared


def test_exact_decoding_equals_plain_decoding_but_for_near_ties(pair, problems):
    equal = 0
    for first in range(0, PROBLEMS, BATCH):
        batch = problems[first : first + BATCH]
        prompts = [problem.prompt for problem in batch]
        plain = kj.generate(pair, prompts, verifier=None, max_new_tokens=512)
        exact = kj.generate(pair, prompts, verifier="exact", draft_length=8, max_new_tokens=512)
        assert plain.stats.failed == exact.stats.failed == exact.stats.relaxed == 0
        assert exact.stats.mean_acceptance_length > 2
        for problem, ours, theirs in zip(batch, exact.tokens, plain.tokens, strict=True):
            if np.array_equal(ours, theirs):
                equal += 1
                continue
            at = first_difference(ours, theirs)
            assert at < min(len(ours), len(theirs)), f"{problem.id}: an answer ends early"
            tokens, margin = top_two(pair, problem.prompt, theirs[:at])
            print(f"{problem.id}: parts at token {at} by {margin:.2e} logits")
            assert tokens == {int(ours[at]), int(theirs[at])}, problem.id
            assert margin < NEAR_TIE, problem.id
    print(f"{equal} of {PROBLEMS} answers are equal")
    assert equal >= PROBLEMS - 3, "near-ties are rare"

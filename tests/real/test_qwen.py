"""The promise of greedy decoding, kept on real weights: Qwen2.5-Coder 1.5B with its 0.5B draft, on GSM8K."""

import os
from pathlib import Path

import numpy as np
import pytest

import kljudge_jax as kj
from kljudge_jax.generation.prompts import tokenize

pytestmark = pytest.mark.real

PROBLEMS, BATCH, PLAIN = 30, 15, 5
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


def leads(pair, prompt, tokens):
    """By how many logits each token of an answer leads the target's next best one, given all before it, f32 `[T]`.

    One teacher-forced pass over prompt and answer; below 0 where the target would have written another token.
    """
    sequence = np.concatenate([tokenize(prompt, pair.tokenizer, pair.target.config.vocab_size), tokens])
    padded = np.zeros((1, -(-len(sequence) // 128) * 128), np.int32)
    padded[0, : len(sequence)] = sequence
    logits = np.array(kj.score(pair.target, padded)[0][0, len(sequence) - len(tokens) - 1 : len(sequence) - 1])
    rows = np.arange(len(tokens))
    own = logits[rows, tokens].copy()
    logits[rows, tokens] = -np.inf
    return own - logits.max(axis=-1)


def test_exact_decoding_writes_the_targets_own_tokens_but_for_near_ties(pair, problems):
    """Every token of 30 answers is the target's argmax, by a pass that shares nothing with the loop."""
    tokens, ties, closest = 0, 0, np.inf
    for first in range(0, PROBLEMS, BATCH):
        batch = problems[first : first + BATCH]
        exact = kj.generate(pair, [p.prompt for p in batch], verifier="exact", draft_length=8, max_new_tokens=512)
        assert exact.stats.failed == exact.stats.relaxed == 0
        assert exact.stats.mean_acceptance_length > 2, "hardly anything was drafted: this shows nothing"
        for problem, answer in zip(batch, exact.tokens, strict=True):
            lead = leads(pair, problem.prompt, answer)
            for at in np.flatnonzero(lead < NEAR_TIE):
                print(f"{problem.id}: token {at} leads by {lead[at]:.2e} logits")
            ties += int(np.sum(lead < 0))
            tokens += len(answer)
            closest = min(closest, float(lead.min()))
            assert lead.min() > -NEAR_TIE, problem.id
    print(f"{tokens} tokens, {ties} of them a near-tie that went the other way; the closest leads by {closest:.2e}")
    assert ties <= 3, "near-ties are rare"


def test_exact_decoding_equals_plain_decoding(pair, problems):
    """Token for token, on fewer questions: plain decoding of a large model takes its time."""
    prompts = [problem.prompt for problem in problems[:PLAIN]]
    plain = kj.generate(pair, prompts, verifier=None, max_new_tokens=512)
    exact = kj.generate(pair, prompts, verifier="exact", draft_length=8, max_new_tokens=512)
    assert exact.stats.cycles < plain.stats.cycles / 2
    for problem, ours, theirs in zip(problems, exact.tokens, plain.tokens, strict=False):
        if not np.array_equal(ours, theirs):
            shared = min(len(ours), len(theirs))
            at = int(np.argmax(ours[:shared] != theirs[:shared]))
            assert ours[at] != theirs[at], f"{problem.id}: an answer ends early"
            assert abs(leads(pair, problem.prompt, theirs[: at + 1])[at]) < NEAR_TIE, problem.id

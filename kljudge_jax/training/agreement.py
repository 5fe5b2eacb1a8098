"""Where a pair disagrees: along the target's own greedy answers, which tokens the draft would have put differently."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.generation.generate import generate
from kljudge_jax.generation.prompts import tokenize
from kljudge_jax.generation.score import score
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.tasks.base import Problem
from kljudge_jax.verification.distributions import kl_divergence

KINDS = ("word", "digit", "other")
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Counts over the tokens of the target's answers, by kind of the target's token.

    Attributes:
      tokens: how many tokens.
      mismatched: of those, where the draft's likeliest token is another one.
      unsure: of the mismatched, where the target's own top probability is at most 0.9.
      median_kl: of the mismatched, the median of KL(target || draft) at T = 1, nats; None where there is none.
    """

    tokens: dict[str, int]
    mismatched: dict[str, int]
    unsure: dict[str, int]
    median_kl: dict[str, float | None]


def measure_agreement(pair: ModelPair, problems: Sequence[Problem], max_new_tokens: int = 160) -> Agreement:
    """Answers problems greedily with the target, and asks the draft for each token of the answers, given those before.

    A token is a word if its text holds a letter, a digit if it holds a digit, and else other: signs, line ends, EOS.
    """
    kinds = token_kinds(pair)
    rows = []
    for start in range(0, len(problems), _BATCH):
        prompts = [problem.prompt for problem in problems[start : start + _BATCH]]
        out = generate(pair, prompts, verifier=None, max_new_tokens=max_new_tokens)
        asked = [tokenize(prompt, pair.tokenizer, pair.target.vocab_size) for prompt in prompts]
        rows.append(_compare(pair, asked, out.tokens))
    token, mismatch, top, kl = (np.concatenate(column) for column in zip(*rows, strict=True))
    counts: dict[str, dict[str, Any]] = {"tokens": {}, "mismatched": {}, "unsure": {}, "median_kl": {}}
    for index, name in enumerate(KINDS):
        of_kind = kinds[token] == index
        missed = of_kind & mismatch
        counts["tokens"][name] = int(of_kind.sum())
        counts["mismatched"][name] = int(missed.sum())
        counts["unsure"][name] = int((missed & (top <= 0.9)).sum())
        counts["median_kl"][name] = float(np.median(kl[missed])) if missed.any() else None
    return Agreement(**counts)


def token_kinds(pair: ModelPair) -> np.ndarray:
    """The index into `KINDS` of every token of the vocabulary: int32 `[V]`."""
    tokenizer = pair.tokenizer
    assert tokenizer is not None

    def kind(token: int) -> int:
        text = tokenizer.decode([token], skip_special_tokens=True)
        if any(c.isalpha() for c in text):
            return 0
        return 1 if any(c.isdigit() for c in text) else 2

    return np.array([kind(token) for token in range(pair.target.vocab_size)], np.int32)


def _compare(pair, prompts, answers) -> tuple[np.ndarray, ...]:
    """Of every answer token: its id, whether the draft puts another one, the target's top probability, and the KL."""
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = np.zeros((_BATCH, -(-width // _BATCH) * _BATCH), np.int32)
    answered = np.zeros((_BATCH, tokens.shape[1] - 1), bool)
    for row, mask, prompt, answer in zip(tokens, answered, prompts, answers, strict=False):
        row[: len(prompt) + len(answer)] = [*prompt, *answer]
        mask[len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
    mismatch, top, kl = map(np.asarray, _differences(pair.target, pair.draft, tokens))
    return tokens[:, 1:][answered], mismatch[answered], top[answered], kl[answered]


@jax.jit
def _differences(target, draft, tokens):
    theirs, ours = score(target, tokens[:, :-1])[0], score(draft, tokens[:, :-1])[0]
    mismatch = jnp.argmax(ours, axis=-1) != tokens[:, 1:]
    return mismatch, jnp.max(jax.nn.softmax(theirs, axis=-1), axis=-1), kl_divergence(theirs, ours)

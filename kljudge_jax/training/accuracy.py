"""How a model in training is examined: greedy answers, and how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from kljudge_jax.generation.generate import generate
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.tasks.base import Problem, Task


def accuracy(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    problems: Sequence[Problem],
    max_new_tokens: int = 128,
    batch_size: int = 128,
) -> float:
    """Share of problems whose greedy answer is right."""
    alone = ModelPair(model, None, tokenizer, (tokenizer.eos_token_id,), "in training", "none")
    prompts = [problem.prompt for problem in problems]
    out = generate(alone, prompts, verifier=None, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return sum(map(task.check, problems, out.text)) / len(problems)

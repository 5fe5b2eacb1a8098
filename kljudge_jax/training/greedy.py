"""Plain greedy decoding of a batch: how a model in training is examined."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from kljudge_jax.models.transformer import Transformer
from kljudge_jax.tasks.base import Problem, Task


@functools.partial(jax.jit, static_argnames=("max_new_tokens",))
def greedy(model: Transformer, prompts: jax.Array, lengths: jax.Array, eos: int, max_new_tokens: int) -> jax.Array:
    """Continues prompts int32 `[B, T]`, the first `lengths[b]` tokens of each real.

    Returns int32 `[B, max_new_tokens]`: the new tokens, and EOS after a row's end.
    """
    batch, width = prompts.shape
    cache = model.init_cache(batch, width + max_new_tokens)
    _, cache = model(prompts, cache)
    cache = cache.at_length(lengths - 1)
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]

    def unfinished(state):
        step, _, done, _, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def advance(state):
        step, last, done, out, cache = state
        features, cache = model(last[:, None], cache)
        token = jnp.argmax(model.logits(features.hidden[:, 0]), axis=-1).astype(jnp.int32)
        token = jnp.where(done, eos, token)
        return step + 1, token, done | (token == eos), out.at[:, step].set(token), cache

    out = jnp.full((batch, max_new_tokens), eos, jnp.int32)
    state = (jnp.int32(0), last, jnp.zeros((batch,), bool), out, cache)
    return jax.lax.while_loop(unfinished, advance, state)[3]


def accuracy(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    problems: list[Problem],
    max_new_tokens: int = 128,
    batch_size: int = 128,
) -> float:
    """Share of problems whose greedy answer is right."""
    right, batch_size = 0, min(batch_size, len(problems))
    ids = [tokenizer(problem.prompt)["input_ids"] for problem in problems]
    width = -(-max(map(len, ids)) // 32) * 32
    for start in range(0, len(problems), batch_size):
        rows = ids[start : start + batch_size]
        prompts = np.full((batch_size, width), tokenizer.pad_token_id, np.int32)
        for i, row in enumerate(rows):
            prompts[i, : len(row)] = row
        lengths = np.array([len(row) for row in rows] + [1] * (batch_size - len(rows)), np.int32)
        out = np.asarray(greedy(model, prompts, lengths, tokenizer.eos_token_id, max_new_tokens))
        texts = tokenizer.batch_decode(out[: len(rows)], skip_special_tokens=True)
        right += sum(
            task.check(problem, text) for problem, text in zip(problems[start : start + batch_size], texts, strict=True)
        )
    return right / len(problems)

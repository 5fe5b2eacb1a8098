"""Training batches of a mixture of tasks: a function of the step number, so that a run resumes to the same data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from kljudge_jax.tasks.generated import GeneratedTask

# Problems are drawn for this many steps at once and sorted by length: rows of a batch are then about equally long.
_POOL = 16
_WIDTH_STEP = 16


@dataclasses.dataclass(frozen=True)
class Batch:
    """B examples, prompt and solution in one row, padded on the right to T tokens.

    Attributes:
      tokens: int32 `[B, T]`.
      weights: f32 `[B, T]`, what `tokens[b, t]` counts in the loss: 0 in the prompt and in the padding.
    """

    tokens: np.ndarray
    weights: np.ndarray


class Mixture:
    """The endless training stream of a tokenizer and a weighted mixture of tasks.

    Args:
      tasks: each task with its share of the examples.
      tokenizer: ends each solution with its EOS token.
      batch_size: B.
      seed: of the problems and of their order.
      digit_weight: what a digit of the solution counts in the loss. Every other token counts 1: wording is drawn at
        random, and the noise of its gradient would drown what the digits teach.
    """

    def __init__(
        self,
        tasks: dict[GeneratedTask, float],
        tokenizer: PreTrainedTokenizerFast,
        batch_size: int,
        seed: int,
        digit_weight: float = 5.0,
    ):
        self.tasks = tasks
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        self._token_weights = np.ones(len(tokenizer), np.float32)
        self._token_weights[tokenizer.convert_tokens_to_ids(list("0123456789"))] = digit_weight
        self._pool: tuple[int, list[Batch]] = (-1, [])

    def at(self, step: int) -> Batch:
        """The batch of a step, whatever was asked for before."""
        pool = step // _POOL
        if self._pool[0] != pool:
            self._pool = (pool, self._draw(pool))
        return self._pool[1][step % _POOL]

    def _draw(self, pool: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, pool))
        count = _POOL * self.batch_size
        tasks, shares = list(self.tasks), np.array(list(self.tasks.values()))
        chosen = rng.choice(len(tasks), count, p=shares / shares.sum())
        problems = [tasks[k].problem("train", self.seed, pool * count + i) for i, k in enumerate(chosen)]
        prompts = self.tokenizer([p.prompt for p in problems])["input_ids"]
        solutions = self.tokenizer([p.solution for p in problems])["input_ids"]
        rows = [(p, [*s, self.tokenizer.eos_token_id]) for p, s in zip(prompts, solutions, strict=True)]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        starts = self.batch_size * rng.permutation(_POOL)
        return [self._pad(rows[start : start + self.batch_size]) for start in starts]

    def _pad(self, rows: list[tuple[list[int], list[int]]]) -> Batch:
        longest = max(len(prompt) + len(solution) for prompt, solution in rows)
        width = -(-longest // _WIDTH_STEP) * _WIDTH_STEP
        tokens = np.full((len(rows), width), self.tokenizer.pad_token_id, np.int32)
        weights = np.zeros((len(rows), width), np.float32)
        for i, (prompt, solution) in enumerate(rows):
            end = len(prompt) + len(solution)
            tokens[i, :end] = prompt + solution
            weights[i, len(prompt) : end] = self._token_weights[solution]
        return Batch(tokens, weights)


class Curriculum:
    """Mixtures that follow one another.

    Args:
      stages: the first step of each mixture, in order, the first one 0; all of one tokenizer and batch size.
    """

    def __init__(self, stages: Sequence[tuple[int, Mixture]]):
        self._stages = stages
        self.tokenizer = stages[-1][1].tokenizer
        self.tasks = stages[-1][1].tasks

    def at(self, step: int) -> Batch:
        """The batch of a step, whatever was asked for before."""
        return next(mixture for first, mixture in reversed(self._stages) if step >= first).at(step)

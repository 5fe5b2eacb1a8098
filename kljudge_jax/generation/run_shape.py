"""The sizes of a run's buffers and caches: what decides which programs it compiles."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from kljudge_jax.core.state import Shape
from kljudge_jax.generation.arguments import Plan
from kljudge_jax.generation.buckets import cache_buckets
from kljudge_jax.generation.score import PREFILL_CHUNK, prefill_plan

# Prompts and caches are padded to these sizes, so that similar calls share one compiled loop.
_SHORTEST_PROMPT = 16
_SLOT_BUCKET = 64


class RunShape(NamedTuple):
    """The static sizes of a run.

    Attributes:
      width: tokens that prompts are padded to, P.
      shape: the static half of the core's arguments.
      buckets: the sizes of cache that the run goes through, slots a row, ascending.
    """

    width: int
    shape: Shape
    buckets: tuple[int, ...]

    @classmethod
    def of(
        cls, target: Any, plan: Plan, rows: int, longest_prompt: int, new: int, tokens: int, trace: bool = False
    ) -> RunShape:
        """The sizes of a run that decodes so many rows side by side.

        Args:
          target: the model.
          plan: what the run decodes with.
          rows: answers side by side, B.
          longest_prompt: tokens of the longest prompt.
          new: the most new tokens of an answer.
          tokens: the most tokens of a prompt and its answer.
          trace: whether divergences and log-probabilities are recorded.
        """
        width = prompt_bucket(longest_prompt)
        # A cycle writes slots past what is committed; a write past the end would shift over good slots.
        capacity = max(round_up(tokens + plan.scorer.slots(plan.draft_length), _SLOT_BUCKET), width)
        controller = None if plan.adaptive is None else plan.adaptive.without_cost()
        room = round_up(new, _SLOT_BUCKET)
        shape = Shape(plan.draft_length, room, capacity, trace, plan.scorer, controller, prefill_plan(target))
        return cls(width, shape, cache_buckets(target, plan.draft, rows * plan.scorer.drafts, capacity))

    def slots(self, longest: int) -> int:
        """The fewest slots of cache that hold a cycle of an answer of `longest` tokens, and any prompt."""
        needed = max(longest + self.shape.written, self.width)
        return next(slots for slots in self.buckets if slots >= needed)

    @property
    def alike(self) -> Shape:
        """The shape less what prompts and answers have room for, on which the costs of a cycle hardly depend."""
        return dataclasses.replace(self.shape, capacity=0, room=0)


def prompt_bucket(length: int) -> int:
    """What prompts are padded to, the longest of which has that many tokens."""
    if length > PREFILL_CHUNK:
        return round_up(length, PREFILL_CHUNK)
    return max(_SHORTEST_PROMPT, 1 << (length - 1).bit_length())


def round_up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step

"""How often a torch model was called, and what a call of the target committed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kljudge_jax.generation.stats import Cycle

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Passes:
    """Counts the forward passes of a model while the block lasts.

    Attributes:
      inputs: the token ids of each pass, int64 `[B, T]`, on the model's device.
      began: when each pass began, of `time.perf_counter`.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self.inputs: list = []
        self.began: list[float] = []

    def __enter__(self) -> Passes:
        self._hook = self._model.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *_) -> None:
        self._hook.remove()

    def _note(self, module, args, kwargs) -> None:
        self.began.append(time.perf_counter())
        self.inputs.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    def __len__(self) -> int:
        return len(self.began)


def cycles_of(inputs: Sequence[Sequence[int]], prompt_length: int, tokens: Sequence[int]) -> list[Cycle]:
    """What each target pass of one assisted answer drafted, accepted and committed.

    Args:
      inputs: the token ids that each pass consumed: the first the prompt and a draft, every other one the last token
        committed and a draft.
      prompt_length: tokens of the prompt.
      tokens: the answer's.

    Returns:
      One cycle a pass. A draft is accepted as far as it is the answer, and the target's own token follows it: a draft
      token that was rejected cannot be drawn again, whose excess probability is 0.
    """
    cycles, at = [], 0
    for i, consumed in enumerate(inputs):
        draft = list(consumed[1 if i else prompt_length :])
        left = list(tokens[at:])
        accepted = next((n for n, (a, b) in enumerate(zip(draft, left, strict=False)) if a != b), None)
        accepted = min(len(draft), len(left)) if accepted is None else accepted
        committed = min(accepted + 1, len(left))
        cycles.append(Cycle(len(draft), accepted, committed))
        at += committed
    if at != len(tokens) or not all(cycle.committed for cycle in cycles):
        raise RuntimeError(f"{len(inputs)} target passes explain {at} of the answer's {len(tokens)} tokens")
    return cycles

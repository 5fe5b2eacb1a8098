"""Full batches, the host's half: which prompt each slot decodes, which ones wait, and what time each has taken."""

from __future__ import annotations

import numpy as np


class Scheduler:
    """Prompts in their order, the first of them in the slots, the others waiting for one.

    Attributes:
      prompt: int `[slots]`, the prompt that each slot decodes; -1 where its answer ended.
      next: the first prompt that waits.
      cycles: int `[slots]`, the cycles that each slot's prompt had had by the end of the last block.
      seconds, prefill_seconds, compile_seconds, slot_cycles: of the call so far.
    """

    def __init__(self, prompts: int, slots: int):
        self.prompt = np.arange(slots)
        self.next = slots
        self.cycles = np.zeros(slots, np.int64)
        self.seconds = self.prefill_seconds = self.compile_seconds = 0.0
        self.slot_cycles = 0
        self._prompts = prompts
        self._begun = np.zeros((prompts, 2))  # seconds and compile_seconds of the call when a prompt was begun
        self._prefill_seconds, self._own_seconds, self._slot_cycles = np.zeros((3, prompts))

    @property
    def slots(self) -> int:
        return len(self.prompt)

    @property
    def waiting(self) -> int:
        return self._prompts - self.next

    def occupied(self) -> list[tuple[int, int]]:
        """The slots whose prompts have not ended, and those prompts."""
        return [(slot, prompt) for slot, prompt in enumerate(self.prompt.tolist()) if prompt >= 0]

    def release(self, slot: int) -> None:
        """The answer in a slot has ended."""
        self.prompt[slot] = -1

    def admit(self) -> list[tuple[int, int]]:
        """Puts waiting prompts into free slots: (slot, prompt) each."""
        free = np.flatnonzero(self.prompt < 0)[: self.waiting]
        entered = [(int(slot), self.next + i) for i, slot in enumerate(free)]
        self.next += len(entered)
        for slot, prompt in entered:
            self.prompt[slot] = prompt
            self.cycles[slot] = 0
        return entered

    def record_prefill(self, prompts: list[int], seconds: float, compile_seconds: float) -> None:
        """Those prompts were consumed together, in so much time."""
        self._begun[prompts] = self.seconds, self.compile_seconds
        self._prefill_seconds[prompts] = seconds
        self._own_seconds[prompts] += seconds / len(prompts)
        self.seconds += seconds
        self.prefill_seconds += seconds
        self.compile_seconds += compile_seconds

    def record_block(self, cycles: np.ndarray, seconds: float, compile_seconds: float) -> None:
        """A block of cycles ran: `cycles` int `[slots]` is how many each slot's prompt has had by now."""
        self.seconds += seconds
        self.compile_seconds += compile_seconds
        busy = self.prompt >= 0
        prompts = self.prompt[busy]
        new = (cycles - self.cycles)[busy]
        self.cycles = np.array(cycles, np.int64)
        if not len(prompts):
            return
        # A block ends no later than its last running row, so that row ran in each of its cycles.
        part = new / new.sum() if new.sum() else np.full(len(new), 1 / len(new))
        self._own_seconds[prompts] += seconds * part
        computed = self.slots * int(new.max())
        self._slot_cycles[prompts] += computed * part
        self.slot_cycles += computed

    def times(self, prompt: int) -> dict[str, float]:
        """What a prompt whose answer has just ended took, as `Stats` has it."""
        seconds, compile_seconds = self._begun[prompt].tolist()
        return {
            "seconds": self.seconds - seconds,
            "prefill_seconds": float(self._prefill_seconds[prompt]),
            "compile_seconds": self.compile_seconds - compile_seconds,
            "own_seconds": float(self._own_seconds[prompt]),
            "slot_cycles": float(self._slot_cycles[prompt]),
        }

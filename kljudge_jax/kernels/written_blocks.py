"""The name of a kernel that reads of a cache the blocks of slots that are written, and how much that is.

Which blocks those are is known when it runs: who reads a compiled program works it out of the name.
"""

from __future__ import annotations

import re


def kernel_name(block: int, slots: int, length: int, window: int) -> str:
    """What a compiled program calls the kernel: sizes of a block and a row, queries of a row and what each sees."""
    return f"written_attention_{block}_of_{slots}_for_{length}_window_{window}"


def share_read(name: str, written: int) -> tuple[int, int] | None:
    """Of each row, how many slots the kernel of that name reads, and of how many; None of what is no such kernel.

    Args:
      name: any text with `kernel_name` in it.
      written: slots of a row that are written, the last of them by its last query.
    """
    found = re.search(r"\bwritten_attention_(\d+)_of_(\d+)_for_(\d+)_window_(\d+)", name)
    if found is None:
        return None
    block, slots, length, window = map(int, found.groups())
    first = max(0, written - length + 1 - window) // block if window else 0
    return min(slots, -(-written // block) * block) - first * block, slots

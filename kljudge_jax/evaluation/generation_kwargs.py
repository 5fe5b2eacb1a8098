"""The generation settings of a harness task as a decoding configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.generation.config import DecodingConfig

# The harness knows one setting by the names of several libraries; the first one given counts.
_MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_TRUNCATION: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
# Settings that no answer of ours follows, with the values at which they ask for nothing.
_OFF = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "use_cache": True}


def read_generation_kwargs(
    kwargs: Mapping[str, Any], tokenizer, config: DecodingConfig
) -> tuple[DecodingConfig, tuple[int, ...]]:
    """Reads the `generation_kwargs` of a task: `until`, `do_sample`, `temperature`, `max_gen_toks` and so on.

    `do_sample: false`, or no temperature without `do_sample: true`, is greedy; then truncation is left aside.

    Args:
      kwargs: as the harness hands them over.
      tokenizer: knows which strings of `until` are special tokens, which no text holds.
      config: of all tasks; a task says how it samples, what ends an answer and, where it does, how long one may be.

    Returns:
      the configuration of the task, and the ids of special tokens that end an answer as well.

    Raises:
      InputError: a setting that `generate` cannot follow, by its name.
    """
    left = {name: value for name, value in kwargs.items() if value is not None}
    most = [left.pop(name) for name in _MOST_TOKENS if name in left]
    stop, ends = _ends(left.pop("until", ()), tokenizer)
    sampled = left.pop("do_sample", None)
    temperature = float(left.pop("temperature", 1.0 if sampled else 0.0))
    truncation: dict[str, Any] = {name: type(off)(left.pop(name, off)) for name, off in _TRUNCATION.items()}
    for name, value in left.items():
        if name not in _OFF or value != _OFF[name]:
            raise InputError(f"{name}={value!r} is no generation setting that can be followed: take it out of the task")
    if sampled is False or temperature == 0:
        temperature, truncation = 0.0, {}
    # Transformers writes no truncation as 0 or as -1.
    if truncation.get("top_k", 0) < 0:
        truncation["top_k"] = 0
    changes = _TRUNCATION | truncation | ({"max_new_tokens": int(most[0])} if most else {})
    return dataclasses.replace(config, stop=stop, temperature=temperature, **changes), ends


def _ends(until, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
    until = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(text, str) for text in until):
        raise InputError(f"until holds strings that end an answer, not {until!r}")
    special = set(tokenizer.all_special_tokens)
    stop = tuple(text for text in until if text and text not in special)
    return stop, tuple(tokenizer.convert_tokens_to_ids(text) for text in until if text in special)

"""The public call `generate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.core.protocols import Drafter
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.generation import arguments
from kljudge_jax.generation.config import takes_config
from kljudge_jax.generation.results import Generation, Progress
from kljudge_jax.generation.run import Run
from kljudge_jax.generation.sections import SectionIds
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.verification import Verifier

# How many cycles run on the device before the host looks for a stop string or reports progress; without either the
# whole run is one block.
_WATCH_CYCLES = 16
# So many while prompts wait for the slots of answers that a stop string ends, which only the host sees.
_STOP_CYCLES = 4
_ALL_CYCLES = np.iinfo(np.int32).max


@takes_config
def generate(
    pair: ModelPair,
    prompts: Any,
    *,
    verifier: Verifier | str | None,
    draft_length: int | Adaptive = 8,
    drafter: Drafter | str = ModelDraft(),  # noqa: B008 - frozen and empty
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    section_ids: SectionIds = "auto",
    template_args: Mapping[str, Any] | str | Sequence[str] = (),
    key: jax.Array | None = None,
    trace: bool = False,
    progress: Callable[[Progress], None] | None = None,
    batch_size: int | None = None,
    answered: Callable[[int, Generation], None] | None = None,
) -> Generation:
    """Answers prompts by speculative decoding under a verification rule.

    Args:
      pair: target, draft and tokenizer.
      prompts: a str (completed as it is), a list of str, a chat (a list of {"role", "content"}), a list of chats, or
        token ids: a 1-D array, a list of them, or a 2-D array.
      verifier: the rule; a spec string such as "exact" or "kl:0.4" will do. None is plain decoding with the target.
      draft_length: draft tokens a cycle, K >= 1, or `Adaptive(...)`. Unused by plain decoding.
      drafter: what proposes them: `ModelDraft()`, `PromptLookup(ngram)`, `SelfDraft(layers)`, or a spec such as
        "lookup:3"; the last two need no draft model.
      max_new_tokens: the most tokens of an answer; one number, or one a prompt.
      temperature: 0 is greedy.
      top_k: when sampling, keeps the k likeliest tokens of either model; 0 is all.
      top_p: when sampling, keeps the likeliest tokens with this much probability together; 1.0 is all.
      min_p: when sampling, drops tokens below this share of the likeliest one's probability; 0 drops none.
      repetition_penalty: 1.0, none; anything else is refused.
      stop: strings that end an answer where they begin.
      section_ids: the token that begins a thinking block and the one that ends it, for rules that read
        `VerifyInputs.section`: two ids, or two texts that are one token each. By default <think> and </think>, where
        the rule names `section` in what it needs. None tells it of none. Those of the prompt count.
      template_args: what the chat template is told beside the messages, such as `{"enable_thinking": False}`.
      key: PRNG key, of which row r uses `fold_in(key, r)`; or an array of B keys, one a row. Default `key(0)`.
      trace: also return `kl`, `logprobs` and `cycles`.
      progress: called with a `Progress` between blocks of cycles.
      batch_size: how many prompts are decoded side by side; the others wait, and each takes the slot of an answer that
        ended. Every answer is what it would be alone, but for what `Adaptive` says of its own. None is all of them. A
        slot has room for the longest prompt with its new tokens, so prompts of like length go best together.
      answered: called with the index of a prompt and its answer alone, a `Generation`, soon after it ends; in the order
        in which they end. What it does takes no time of `stats`.
      config: a `DecodingConfig`, which is taken by every keyword: what it says of all of these, of the key by its seed
        and of `batch_size`, where they are not given themselves.

    Returns:
      A `Generation`. An answer whose model returned NaN or +inf ends before it; `stats.failed` counts those. Where it
      was the draft, and the rule is lossless, the target goes on alone instead; `stats.draft_failed` counts those.

    Raises:
      InputError: what was asked for cannot be done; the message says why.
    """
    arguments.check_penalty(repetition_penalty)
    sampling = Sampling.create(temperature, top_k, top_p, min_p)
    asked = draft_length, drafter, max_new_tokens, sampling, stop, key, trace, batch_size, section_ids, template_args
    run = Run(pair, prompts, verifier, *asked)
    watched = bool(run.stop) or progress is not None
    while run.unfinished:
        block = _STOP_CYCLES if run.stop and run.scheduler.waiting else _WATCH_CYCLES if watched else _ALL_CYCLES
        ended = run.advance(block, watched=answered is not None)
        if progress is not None:
            progress(run.progress())
        if answered is not None:
            for prompt in ended:
                answered(prompt, run.answer(prompt))
    return run.result()

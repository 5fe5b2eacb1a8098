"""The public call `stream`: an answer's text, piece by piece as it is committed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.core.protocols import Drafter
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.errors import InputError
from kljudge_jax.generation import arguments
from kljudge_jax.generation.config import takes_config
from kljudge_jax.generation.detokenize import Detokenizer, find_stop
from kljudge_jax.generation.results import Generation
from kljudge_jax.generation.run import Run
from kljudge_jax.generation.sections import SectionIds
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.verification import Verifier

# How many cycles run on the device between two looks of the host, while a person waits.
_STREAM_CYCLES = 4


@dataclasses.dataclass(frozen=True)
class Event:
    """A piece of an answer, as `stream` yields it.

    Attributes:
      text: the piece.
      origin: where its tokens came from: "draft", "relaxed" or "target".
      result: None, but in the last event, which has no text: what `generate` would have returned.
    """

    text: str
    origin: str
    result: Generation | None = None


@takes_config
def stream(
    pair: ModelPair,
    prompt: Any,
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
) -> Iterator[Event]:
    """Answers one prompt, yielding its text piece by piece as it is committed.

    Takes what `generate` takes, but `progress`, `answered` and `batch_size`. Neighbouring tokens of one origin come as
    one piece; the pieces add up to the answer. The last event carries the whole `Generation` in `result`.

    Raises:
      InputError: as `generate` does, at the call and not at the first piece; also for more than one prompt.
    """
    arguments.check_penalty(repetition_penalty)
    sampling = Sampling.create(temperature, top_k, top_p, min_p)
    asked = draft_length, drafter, max_new_tokens, sampling, stop, key, trace, None, section_ids, template_args
    run = Run(pair, prompt, verifier, *asked)
    if run.batch != 1:
        raise InputError(f"stream answers one prompt at a time, got {run.batch}: use generate for a batch")
    return _events(run)


def _events(run: Run) -> Iterator[Event]:
    pieces = _Pieces(run.pair.tokenizer, run.stop)
    seen = 0
    while run.unfinished:
        run.advance(_STREAM_CYCLES)
        tokens, origin = run.text_tokens(0)
        yield from pieces.push(tokens[seen:], origin[seen:])
        seen = max(seen, len(tokens))  # a stop string may cut off what was pushed, but not given out, before
    result = run.result()
    yield from pieces.flush(len(result.text[0]))
    yield Event("", "target", result)


class _Pieces:
    """Tokens to events: text that might yet turn out to begin a stop string is held back."""

    def __init__(self, tokenizer, stop: tuple[str, ...]):
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._held: list[tuple[str, str]] = []  # (text, origin), not given out yet
        self._given = 0  # characters that were
        self._origin = "target"

    def push(self, tokens: Sequence[int] | np.ndarray, origin: Sequence[str]) -> list[Event]:
        for token, self._origin in zip(tokens, origin, strict=True):
            self._held.append((self._detokenizer.push(token), self._origin))
        text = "".join(piece for piece, _ in self._held)
        at = find_stop(text, self._stop)
        return self._release(at if at >= 0 else len(text) - self._begun(text))

    def flush(self, length: int) -> list[Event]:
        """The rest of an answer of `length` characters."""
        self._held.append((self._detokenizer.flush(), self._origin))
        return self._release(max(length - self._given, 0))

    def _begun(self, text: str) -> int:
        """How many characters at the end of `text` begin a stop string; the most, if there are several."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)

    def _release(self, free: int) -> list[Event]:
        """Gives out the first `free` characters of what is held."""
        events: list[Event] = []
        held = []
        for piece, origin in self._held:
            out, rest = piece[:free], piece[free:]
            free -= len(out)
            self._given += len(out)
            if out and events and events[-1].origin == origin:
                events[-1] = Event(events[-1].text + out, origin)
            elif out:
                events.append(Event(out, origin))
            if rest:
                held.append((rest, origin))
        self._held = held
        return events

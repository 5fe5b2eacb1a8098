"""The public calls: `generate` and `stream`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.decoding import loop, prompts, stats
from kljudge_jax.decoding.compile_clock import compile_seconds
from kljudge_jax.decoding.detokenize import Detokenizer, cut_at_stop, decode, find_stop
from kljudge_jax.decoding.draft import ModelDraft
from kljudge_jax.decoding.sampling import Sampling
from kljudge_jax.decoding.score import PREFILL_CHUNK
from kljudge_jax.errors import InputError
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.verification import GreedyExact, SpeculativeSampling, Verifier, parse_verifier

# How many cycles run on the device before the host looks: for a stop string or a progress report, and for a stream,
# where a person waits. Without any of the three the whole run is one block.
_WATCH_CYCLES = 16
_STREAM_CYCLES = 4
_ALL_CYCLES = np.iinfo(np.int32).max

# Prompts and caches are padded to these sizes, so that similar calls share one compiled loop.
_SHORTEST_PROMPT = 16
_SLOT_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come: new tokens and finished answers of the batch, and seconds since it began."""

    tokens: int
    finished: int
    answers: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns; one entry a prompt.

    Attributes:
      text: the answers, without EOS and without what a stop string cut off; "" where the pair has no tokenizer.
      tokens: int32 `[T]` each, new tokens only, EOS included.
      origin: per token "draft" (the strict rule accepts it), "relaxed" (only this rule does) or "target" (a
        correction or a bonus token).
      stats: counts and times, pooled; `stats.rows[i]` for one prompt.
      kl: with `trace`, f32 `[T]` each: KL(target || draft) at T = 1 in nats, NaN where no draft token stood.
      logprobs: with `trace`, f32 `[T]` each: log-probability under the target at T = 1.
      cycles: with `trace`, the cycles of each answer.
    """

    text: list[str]
    tokens: list[np.ndarray]
    origin: list[list[str]]
    stats: stats.Stats
    kl: list[np.ndarray] | None = None
    logprobs: list[np.ndarray] | None = None
    cycles: list[list[stats.Cycle]] | None = None


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


def generate(
    pair: ModelPair,
    prompts: Any,
    *,
    verifier: Verifier | str | None,
    draft_length: int = 8,
    drafter: Any = ModelDraft(),  # noqa: B008 - frozen and empty
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    key: jax.Array | None = None,
    trace: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Generation:
    """Answers prompts by speculative decoding under a verification rule.

    Args:
      pair: target, draft and tokenizer.
      prompts: a str (completed as it is), a list of str, a chat (a list of {"role", "content"}), a list of chats, or
        token ids: a 1-D array, a list of them, or a 2-D array. All are decoded as one batch.
      verifier: the rule; a word such as "exact" or "kl:0.4" will do. None is plain decoding with the target.
      draft_length: draft tokens a cycle, K >= 1. Unused by plain decoding.
      drafter: what proposes them.
      max_new_tokens: the most tokens of an answer; one number, or one a prompt.
      temperature: 0 is greedy.
      top_k, top_p: truncation of both models' distributions when sampling; 0 and 1.0 are off.
      stop: strings that end an answer where they begin.
      key: PRNG key, of which row r uses `fold_in(key, r)`; or an array of B keys, one a row. Default `key(0)`.
      trace: also return `kl`, `logprobs` and `cycles`.
      progress: called with a `Progress` between blocks of cycles.

    Returns:
      A `Generation`. An answer whose model returned NaN or +inf ends before it; `stats.failed` counts those.

    Raises:
      InputError: what was asked for cannot be done; the message says why.
    """
    run = _Run(
        pair, prompts, verifier, draft_length, drafter, max_new_tokens, (temperature, top_k, top_p), stop, key, trace
    )
    watched = bool(run.stop) or progress is not None
    while run.unfinished:
        run.advance(_WATCH_CYCLES if watched else _ALL_CYCLES)
        if progress is not None:
            progress(run.progress())
    return run.result()


def stream(
    pair: ModelPair,
    prompt: Any,
    *,
    verifier: Verifier | str | None,
    draft_length: int = 8,
    drafter: Any = ModelDraft(),  # noqa: B008 - frozen and empty
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    key: jax.Array | None = None,
    trace: bool = False,
) -> Iterator[Event]:
    """Answers one prompt, yielding its text piece by piece as it is committed.

    Takes what `generate` takes, but `progress`. Neighbouring tokens of one origin come as one piece; the pieces add up
    to the answer. The last event carries the whole `Generation` in `result`.

    Raises:
      InputError: as `generate` does, at the call and not at the first piece; also for more than one prompt.
    """
    run = _Run(
        pair, prompt, verifier, draft_length, drafter, max_new_tokens, (temperature, top_k, top_p), stop, key, trace
    )
    if run.batch != 1:
        raise InputError(f"stream answers one prompt at a time, got {run.batch}: use generate for a batch")
    return _events(run)


def _events(run: _Run) -> Iterator[Event]:
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

    def push(self, tokens: Sequence[int], origin: Sequence[str]) -> list[Event]:
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


class _Run:
    """One call of `generate` or `stream`: checked input, the state on the device, and what the host knows of it."""

    def __init__(self, pair, given, verifier, draft_length, drafter, max_new_tokens, sampling, stop, key, trace):
        self.pair = pair
        self.sampling = Sampling.create(*sampling)
        self.stop = _stop_strings(stop, pair)
        self._verifier, self._draft, drafter, draft_length = _rule(pair, verifier, drafter, draft_length, self.sampling)
        rows = prompts.split(given)
        self.batch = len(rows)
        names = ["the prompt"] if self.batch == 1 else [f"prompt {i}" for i in range(self.batch)]
        vocab = pair.target.config.vocab_size
        ids = [prompts.tokenize(row, pair.tokenizer, vocab, name) for row, name in zip(rows, names, strict=True)]
        budget = _budget(max_new_tokens, self.batch)
        _check_fit(pair.target, self._draft, ids, budget, names)
        budget = budget.astype(np.int32)

        lengths = np.array([len(row) for row in ids], np.int32)
        padded = np.zeros((self.batch, _prompt_bucket(int(lengths.max()))), np.int32)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        room = _round_up(int(budget.max()), _SLOT_BUCKET)
        # A cycle writes K + 1 slots past what is committed; a write past the end would shift over good slots.
        capacity = max(_round_up(int((lengths + budget).max()) + draft_length + 1, _SLOT_BUCKET), padded.shape[1])
        self._settings = loop.Settings(drafter, draft_length, capacity, room, trace)
        self._eos = jnp.asarray(pair.eos, jnp.int32)
        keys = _row_keys(key, self.batch)

        began = time.perf_counter()
        self._state = jax.block_until_ready(
            loop.start(pair.target, self._draft, padded, lengths, keys, budget, settings=self._settings)
        )
        self._compile_seconds = compile_seconds(began)
        self._prefill_seconds = time.perf_counter() - began - self._compile_seconds
        self._seconds = self._prefill_seconds
        self._stopped: dict[int, tuple[int, str]] = {}  # row: tokens kept, text
        self._halted = np.zeros((self.batch,), bool)  # the rows of `_stopped`, as the device is told
        self._known: dict[str, np.ndarray] = {}
        self.unfinished = True

    def advance(self, max_cycles: int) -> None:
        """Runs a block of cycles, learns what they committed, and stops rows that hold a stop string."""
        began = time.perf_counter()
        state = loop.run_cycles(
            self.pair.target,
            self._draft,
            self._verifier,
            self.sampling,
            self._eos,
            self._state,
            self._halted,
            np.int32(max_cycles),
            settings=self._settings,
            rule=type(self._verifier),
        )
        names = ["tokens", "origin", "count", "running", "failed", "cycles", "cycle_drafted", "cycle_committed"]
        names += ["kl", "logprobs"] if self._settings.trace else []
        self._known = jax.device_get({name: getattr(state, name) for name in names})
        compiled = compile_seconds(began)
        self._compile_seconds += compiled
        self._seconds += time.perf_counter() - began - compiled

        running = self._known["running"] & ~self._halted
        for row in range(self.batch) if self.stop else ():
            if row not in self._stopped:
                cut = cut_at_stop(self.pair.tokenizer, self.text_tokens(row)[0], self.stop)
                if cut is not None:
                    self._stopped[row] = cut
                    running[row] = False
                    self._halted[row] = True
        self._state = state
        self.unfinished = bool(running.any())

    def committed(self, row: int) -> tuple[np.ndarray, list[str]]:
        """Tokens of a row and their origins, up to where a stop string cut it."""
        count = int(self._known["count"][row])
        count = self._stopped.get(row, (count, ""))[0]
        codes = self._known["origin"][row, :count]
        return self._known["tokens"][row, :count].copy(), [loop.ORIGINS[code] for code in codes]

    def text_tokens(self, row: int) -> tuple[np.ndarray, list[str]]:
        """Those of them that are text: all but an EOS at the end."""
        tokens, origin = self.committed(row)
        end = len(tokens) - bool(len(tokens) and tokens[-1] in self.pair.eos)
        return tokens[:end], origin[:end]

    def progress(self) -> Progress:
        running = self._known["running"]
        finished = sum(row in self._stopped or not running[row] for row in range(self.batch))
        return Progress(int(self._known["count"].sum()), finished, self.batch, self._seconds)

    def result(self) -> Generation:
        answers = [self.committed(row) for row in range(self.batch)]
        cycles = [self._cycles(row) for row in range(self.batch)]
        times = {
            "seconds": self._seconds,
            "prefill_seconds": self._prefill_seconds,
            "compile_seconds": self._compile_seconds,
        }
        rows = [
            stats.row_stats(cycles[i], origin.count("relaxed"), self._settings.draft_length, self._finish(i), **times)
            for i, (_, origin) in enumerate(answers)
        ]
        text = [
            self._stopped[i][1] if i in self._stopped else decode(self.pair.tokenizer, self.text_tokens(i)[0])
            for i in range(self.batch)
        ]
        result = Generation(
            text, [tokens for tokens, _ in answers], [origin for _, origin in answers], stats.pool(rows)
        )
        if not self._settings.trace:
            return result

        def traced(name):
            return [self._known[name][i, : len(tokens)].copy() for i, (tokens, _) in enumerate(answers)]

        return dataclasses.replace(result, kl=traced("kl"), logprobs=traced("logprobs"), cycles=cycles)

    def _cycles(self, row: int) -> list[stats.Cycle]:
        known, cycles = self._known, int(self._known["cycles"][row])
        origin = known["origin"][row]
        found, at = [], 0
        for drafted, committed in zip(
            known["cycle_drafted"][row, :cycles].tolist(), known["cycle_committed"][row, :cycles].tolist(), strict=True
        ):
            accepted = int(np.sum(loop.from_draft(origin[at : at + committed])))
            found.append(stats.Cycle(drafted, accepted, committed))
            at += committed
        return stats.cut_cycles(found, self._stopped[row][0]) if row in self._stopped else found

    def _finish(self, row: int) -> str:
        if row in self._stopped:
            return "stop"
        if self._known["failed"][row]:
            return "failed"
        count = int(self._known["count"][row])
        return "eos" if count and self._known["tokens"][row, count - 1] in self.pair.eos else "length"


def _rule(pair, verifier, drafter, draft_length, sampling):
    """The rule, its draft model, the drafter and K; plain decoding is the strict rule over no draft at all."""
    if isinstance(verifier, str):
        verifier = parse_verifier(verifier, sampling.greedy)
    if verifier is None:
        return (GreedyExact() if sampling.greedy else SpeculativeSampling()), None, None, 0
    if not callable(verifier) or isinstance(verifier, type):
        raise InputError(f"a verifier is a rule such as KLJudge(0.4) or a word such as 'kl:0.4', got {verifier!r}")
    if getattr(verifier, "greedy_only", False) and not sampling.greedy:
        name = type(verifier).__name__
        raise InputError(f"{name} needs temperature 0: use SpeculativeSampling, or the word 'exact' for either")
    if not isinstance(draft_length, int | np.integer) or isinstance(draft_length, bool) or draft_length < 1:
        raise InputError(
            f"draft_length must be a whole number from 1 on, got {draft_length}; for plain decoding use verifier=None"
        )
    if not hasattr(drafter, "propose"):
        raise InputError(f"a drafter is one such as ModelDraft(), got {drafter!r}; plain decoding is verifier=None")
    if pair.draft is None:
        raise InputError("the pair has no draft model: load one, or use verifier=None for plain decoding")

    def as_data(number):
        if not isinstance(number, int | float | np.number | np.ndarray | jax.Array):
            raise InputError(
                f"{type(verifier).__name__} holds {number!r}, which is no number: make a rule a frozen dataclass of "
                "numbers, registered by jax.tree_util.register_dataclass"
            )
        number = jnp.asarray(number)
        if jnp.issubdtype(number.dtype, jnp.floating):
            return number.astype(jnp.float32)
        return number.astype(jnp.int32) if jnp.issubdtype(number.dtype, jnp.integer) else number

    return jax.tree.map(as_data, verifier), pair.draft, drafter, int(draft_length)


def _stop_strings(stop, pair) -> tuple[str, ...]:
    stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(s, str) and s for s in stop):
        raise InputError("a stop string must be a str of at least one character")
    if stop and pair.tokenizer is None:
        raise InputError("stop strings need a tokenizer, and the pair has none")
    special = set(stop) & set(getattr(pair.tokenizer, "all_special_tokens", ()))
    if special:
        raise InputError(
            f"{min(special)!r} is a special token, which no text holds: stop at text, or add its id to eos"
        )
    return stop


def _budget(max_new_tokens, batch: int) -> np.ndarray:
    wanted = np.asarray(max_new_tokens)
    if not np.issubdtype(wanted.dtype, np.integer) or wanted.ndim > 1 or (wanted.size and wanted.min() < 1):
        raise InputError(f"max_new_tokens must be a whole number from 1 on, got {max_new_tokens}")
    if wanted.ndim == 1 and len(wanted) != batch:
        raise InputError(f"max_new_tokens has {len(wanted)} numbers for {batch} prompts")
    return np.broadcast_to(wanted, (batch,)).astype(np.int64)


def _check_fit(target, draft, ids, budget, names) -> None:
    for model, whose in ((target, "target"), (draft, "draft")):
        for tokens, new, name in zip(ids, budget, names, strict=True):
            if model is not None and len(tokens) + new > model.config.max_position:
                raise InputError(
                    f"{name} has {len(tokens)} tokens; with {new} new ones that is {len(tokens) + new}, and the "
                    f"{whose} takes {model.config.max_position}: shorten it or lower max_new_tokens"
                )


def _row_keys(key, batch: int) -> jax.Array:
    key = jax.random.key(0) if key is None else key
    if not isinstance(key, jax.Array):
        raise InputError(f"key is a PRNG key such as jax.random.key(0), got {key!r}")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise InputError(f"key is one PRNG key or one a prompt: got shape {key.shape} for {batch} prompts")
    return key


def _prompt_bucket(length: int) -> int:
    if length > PREFILL_CHUNK:
        return _round_up(length, PREFILL_CHUNK)
    return max(_SHORTEST_PROMPT, 1 << (length - 1).bit_length())


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step

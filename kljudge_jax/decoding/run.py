"""The host side of a call: what goes to the device, and what comes back in blocks of cycles."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.decoding import arguments, loop, prompts, stats
from kljudge_jax.decoding.compile_clock import compile_seconds
from kljudge_jax.decoding.detokenize import cut_at_stop, decode
from kljudge_jax.decoding.results import Generation, Progress
from kljudge_jax.decoding.score import PREFILL_CHUNK, count_shared_chunks
from kljudge_jax.decoding.state import ORIGINS, Settings, from_draft

# Prompts and caches are padded to these sizes, so that similar calls share one compiled loop.
_SHORTEST_PROMPT = 16
_SLOT_BUCKET = 64


class Run:
    """One call of `generate` or `stream`: checked input, the state on the device, and what the host knows of it."""

    def __init__(self, pair, given, verifier, draft_length, drafter, max_new_tokens, sampling, stop, key, trace):
        self.pair = pair
        self.sampling = sampling
        self.stop = arguments.stop_strings(stop, pair)
        plan = arguments.plan(pair, verifier, drafter, draft_length, self.sampling)
        self.verifier, self.draft = plan.verifier, plan.draft
        rows = prompts.split(given)
        self.batch = len(rows)
        names = ["the prompt"] if self.batch == 1 else [f"prompt {i}" for i in range(self.batch)]
        vocab = pair.target.config.vocab_size
        ids = [prompts.tokenize(row, pair.tokenizer, vocab, name) for row, name in zip(rows, names, strict=True)]
        budget = arguments.budget(max_new_tokens, self.batch)
        arguments.check_fit(pair.target, self.draft, ids, budget, names)
        budget = budget.astype(np.int32)

        lengths = np.array([len(row) for row in ids], np.int32)
        padded = np.zeros((self.batch, _prompt_bucket(int(lengths.max()))), np.int32)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        room = _round_up(int(budget.max()), _SLOT_BUCKET)
        # A cycle writes slots past what is committed; a write past the end would shift over good slots.
        slots = int((lengths + budget).max()) + plan.scorer.slots(plan.draft_length)
        capacity = max(_round_up(slots, _SLOT_BUCKET), padded.shape[1])
        self._prompts, self.lengths = padded, lengths
        self.settings = Settings(plan.drafter, plan.draft_length, capacity, room, trace, plan.adaptive, plan.scorer)
        self.eos = jnp.asarray(pair.eos, jnp.int32)
        self._keys, self._budget = arguments.row_keys(key, self.batch), budget

        began = time.perf_counter()
        self._shared_chunks = np.int32(count_shared_chunks(padded, lengths))
        self.state = jax.block_until_ready(self.start())
        self.compile_seconds = compile_seconds(began)
        self._prefill_seconds = time.perf_counter() - began - self.compile_seconds
        self._seconds = self._prefill_seconds
        self._stopped: dict[int, tuple[int, str]] = {}  # row: tokens kept, text
        self._halted = np.zeros((self.batch,), bool)  # the rows of `_stopped`, as the device is told
        self._known: dict[str, np.ndarray] = {}
        self.unfinished = True

    def start(self) -> loop.LoopState:
        """A new state that has consumed the prompts."""
        return loop.start(
            self.pair.target,
            self.draft,
            self._prompts,
            self.lengths,
            self._keys,
            self._budget,
            self._shared_chunks,
            settings=self.settings,
        )

    def advance(self, max_cycles: int) -> None:
        """Runs a block of cycles, learns what they committed, and stops rows that hold a stop string."""
        began = time.perf_counter()
        state = loop.run_cycles(
            self.pair.target,
            self.draft,
            self.verifier,
            self.sampling,
            self.eos,
            self.state,
            self._halted,
            np.int32(max_cycles),
            settings=self.settings,
            rule=type(self.verifier),
        )
        names = ["sequence", "origin", "count", "running", "failed", "cycles", "cycle_drafted", "cycle_committed"]
        names += ["kl", "logprobs"] if self.settings.trace else []
        self._known = jax.device_get({name: getattr(state, name) for name in names})
        compiled = compile_seconds(began)
        self.compile_seconds += compiled
        self._seconds += time.perf_counter() - began - compiled

        running = self._known["running"] & ~self._halted
        for row in range(self.batch) if self.stop else ():
            if row not in self._stopped:
                cut = cut_at_stop(self.pair.tokenizer, self.text_tokens(row)[0], self.stop)
                if cut is not None:
                    self._stopped[row] = cut
                    running[row] = False
                    self._halted[row] = True
        self.state = state
        self.unfinished = bool(running.any())

    def committed(self, row: int) -> tuple[np.ndarray, list[str]]:
        """Tokens of a row and their origins, up to where a stop string cut it."""
        count = int(self._known["count"][row])
        count = self._stopped.get(row, (count, ""))[0]
        codes = self._known["origin"][row, :count]
        begin = self.lengths[row]
        return self._known["sequence"][row, begin : begin + count].copy(), [ORIGINS[code] for code in codes]

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
        cycles = [self.cycles(row) for row in range(self.batch)]
        times = {
            "seconds": self._seconds,
            "prefill_seconds": self._prefill_seconds,
            "compile_seconds": self.compile_seconds,
        }
        rows = [
            stats.row_stats(cycles[i], origin.count("relaxed"), self.settings.draft_length, self._finish(i), **times)
            for i, (_, origin) in enumerate(answers)
        ]
        text = [
            self._stopped[i][1] if i in self._stopped else decode(self.pair.tokenizer, self.text_tokens(i)[0])
            for i in range(self.batch)
        ]
        result = Generation(
            text,
            [tokens for tokens, _ in answers],
            [origin for _, origin in answers],
            stats.pool(rows),
            tokenizer=self.pair.tokenizer,
        )
        if not self.settings.trace:
            return result

        def traced(name):
            return [self._known[name][i, : len(tokens)].copy() for i, (tokens, _) in enumerate(answers)]

        return dataclasses.replace(result, kl=traced("kl"), logprobs=traced("logprobs"), cycles=cycles)

    def cycles(self, row: int) -> list[stats.Cycle]:
        """The cycles of a row, up to where a stop string cut it."""
        known, cycles = self._known, int(self._known["cycles"][row])
        origin = known["origin"][row]
        found, at = [], 0
        for drafted, committed in zip(
            known["cycle_drafted"][row, :cycles].tolist(), known["cycle_committed"][row, :cycles].tolist(), strict=True
        ):
            accepted = int(np.sum(from_draft(origin[at : at + committed])))
            found.append(stats.Cycle(drafted, accepted, committed))
            at += committed
        return stats.cut_cycles(found, self._stopped[row][0]) if row in self._stopped else found

    def _finish(self, row: int) -> str:
        if row in self._stopped:
            return "stop"
        if self._known["failed"][row]:
            return "failed"
        tokens, _ = self.committed(row)
        return "eos" if len(tokens) and tokens[-1] in self.pair.eos else "length"


def _prompt_bucket(length: int) -> int:
    if length > PREFILL_CHUNK:
        return _round_up(length, PREFILL_CHUNK)
    return max(_SHORTEST_PROMPT, 1 << (length - 1).bit_length())


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step

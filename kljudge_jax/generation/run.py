"""The host side of a call: what goes to the device, and what comes back in blocks of cycles."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kljudge_jax.core import rows
from kljudge_jax.core.controller import Adaptive
from kljudge_jax.core.loop import UNBOUNDED, Entries
from kljudge_jax.core.protocols import Drafter
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.state import LoopState, Numbers
from kljudge_jax.core.verify import check_row_numbers, row_axes
from kljudge_jax.errors import InputError
from kljudge_jax.generation import arguments, programs, prompts, stats
from kljudge_jax.generation.compile_clock import compile_seconds
from kljudge_jax.generation.costs import CycleCosts
from kljudge_jax.generation.detokenize import cut_at_stop, decode
from kljudge_jax.generation.memory_plan import Workload, check_run_fits
from kljudge_jax.generation.results import Generation, Progress
from kljudge_jax.generation.row import Row, fetch_state
from kljudge_jax.generation.run_shape import RunShape
from kljudge_jax.generation.scheduler import Scheduler
from kljudge_jax.generation.score import PREFILL_CHUNK, count_shared_chunks
from kljudge_jax.generation.sections import SectionIds
from kljudge_jax.models.flat_model import flatten
from kljudge_jax.models.leaves import layout_of, parameter_bytes
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.parallel.axes import VOCAB
from kljudge_jax.parallel.placement import warn_uneven_batch
from kljudge_jax.verification import Verifier

# While prompts wait, a block of cycles ends when one slot in so many is free: a poll of the host costs time, and an
# empty slot too.
_SLOTS_PER_POLL = 8


class Run:
    """One call of `generate` or `stream`: checked input, the state on the device, and what the host knows of it.

    With `batch_size` fewer slots than prompts, a prompt that waits takes the place of an answer that ended. All slots
    are as large as the longest prompt with its new tokens needs; the caches may begin smaller, and grow.
    """

    def __init__(
        self,
        pair: ModelPair,
        given: Any,
        verifier: Verifier | str | None,
        draft_length: int | Adaptive,
        drafter: Drafter | str,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling,
        stop: str | Sequence[str],
        key: jax.Array | None,
        trace: bool,
        batch_size: int | None = None,
        section_ids: SectionIds = "auto",
        template_args: Mapping[str, Any] | str | Sequence[str] = (),
    ):
        self.pair = pair
        layout = layout_of(pair.target)
        split = layout is not None and layout.ways(VOCAB) > 1
        self.sampling = sampling.over_split_vocabulary() if split else sampling
        self.stop = arguments.stop_strings(stop, pair)
        plan = arguments.plan(pair, verifier, drafter, draft_length, self.sampling, section_ids)
        self._sections = None if plan.sections is None else jax.device_put(np.asarray(plan.sections, np.int32))
        self.verifier, self.drafter, self.draft = plan.verifier, plan.drafter, plan.draft
        self.models = flatten(pair.target), flatten(plan.draft)
        texts = prompts.split(given)
        self.batch = len(texts)
        slots = arguments.slots(batch_size, self.batch)
        check_row_numbers(self.verifier, self.batch)
        if slots < self.batch and 0 in row_axes(self.verifier):
            raise InputError(
                f"{type(self.verifier).__name__} has numbers one a prompt, which take no other prompt's slot: leave "
                "out batch_size"
            )
        if layout is not None:
            warn_uneven_batch(layout, slots)
        names = ["the prompt"] if self.batch == 1 else [f"prompt {i}" for i in range(self.batch)]
        vocab = pair.target.vocab_size
        ids = [
            prompts.tokenize(text, pair.tokenizer, vocab, name, template_args)
            for text, name in zip(texts, names, strict=True)
        ]
        budget = arguments.budget(max_new_tokens, self.batch)
        arguments.check_fit(pair.target, self.draft, ids, budget, names)
        budget = budget.astype(np.int32)

        lengths = np.array([len(row) for row in ids], np.int32)
        longest, new = int(lengths.max()), int(budget.max())
        sizes = RunShape.of(pair.target, plan, slots, longest, new, int((lengths + budget).max()), trace)
        padded = np.zeros((self.batch, sizes.width), np.int32)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        self.sizes, self.shape = sizes, sizes.shape
        self._prompts, self.lengths = padded, lengths
        scorer = plan.scorer
        check_run_fits(
            pair.target,
            self.draft,
            Workload(
                batch=slots,
                prompt_tokens=longest,
                max_new_tokens=new,
                draft_length=scorer.positions // scorer.drafts * plan.draft_length,
                sampling=not self.sampling.greedy,
                drafts=scorer.drafts,
                capacity=sizes.shape.capacity,
            ),
        )
        self.eos = jax.device_put(np.asarray(pair.eos, np.int32))
        # On the host: to index an array on the device costs a dispatch.
        self._keys, self._key_kind = arguments.row_keys(key, self.batch)
        self._budget = budget
        self._shared = np.int32(PREFILL_CHUNK * count_shared_chunks(padded, lengths))

        self.scheduler = Scheduler(self.batch, slots)
        self.costs: CycleCosts | None = None
        if plan.adaptive is not None:
            models = tuple(model and (model.structure, parameter_bytes(model.leaves)) for model in self.models)
            # Where attention reads all of a cache, the caches' sizes decide too.
            caches = sizes.buckets if len(sizes.buckets) > 1 else None
            program = models, self.drafter, sizes.alike, type(self.verifier), self.sampling.greedy, slots, caches
            self.costs = CycleCosts.of(program, plan.adaptive, plan.cost)
        self._known: dict[str, np.ndarray] = {}
        began = time.perf_counter()
        self.state = jax.block_until_ready(self.start())
        compiled = compile_seconds(began)
        self.scheduler.record_prefill(list(range(slots)), time.perf_counter() - began - compiled, compiled)
        self._halted = np.zeros((slots,), bool)  # the slots that the host stopped
        self._ended: dict[int, tuple[Row, stats.Stats]] = {}
        self.unfinished = True

    @property
    def compile_seconds(self) -> float:
        return self.scheduler.compile_seconds

    @property
    def static(self) -> dict[str, Any]:
        """The static arguments of the programs of this run."""
        return {"drafter": self.drafter, "shape": self.shape}

    def numbers(self, budget: Any = 0, costs: np.ndarray | None = None) -> Numbers:
        """The data half of the run; a budget is for those programs that begin rows."""
        return Numbers(
            self.sampling,
            jax.device_put(np.asarray(budget)),
            self.eos,
            self._sections,
            None if costs is None else jax.device_put(costs),
        )

    def start(self) -> LoopState:
        """A new state that has consumed the first prompts, one a slot."""
        first = slice(self.scheduler.slots)
        return programs.start(
            *self.models,
            self.verifier,
            self._prompts[first],
            self.lengths[first],
            self._row_keys(first),
            self.numbers(self._budget[first]),
            self._shared,
            slots=self._cache_slots(),
            **self.static,
        )

    def advance(self, max_cycles: int, watched: bool = False) -> list[int]:
        """Fills the free slots, runs a block of cycles and learns what they committed: the prompts that it ended.

        A block ends after `max_cycles`, or when enough answers have ended: while prompts wait, or always if `watched`;
        and where the caches have to grow.
        Rows that hold a stop string are stopped.
        """
        slots = self._cache_slots()
        self._refill()
        scheduler = self.scheduler
        began = time.perf_counter()
        moved = self._resize(slots)
        # A block in which the caches moved would not be timed alone.
        timed = None if self.costs is None or moved else self.costs.next()
        costs = None
        if self.costs is not None:
            costs = self.costs.table() if timed is None else self.costs.only(timed[0])
        ready = time.perf_counter()
        state = programs.run_cycles(
            *self.models,
            self.verifier,
            self.state,
            self.numbers(costs=costs),
            self._halted,
            np.int32(max_cycles if timed is None else min(max_cycles, timed[1])),
            np.int32(max(1, scheduler.slots // _SLOTS_PER_POLL) if scheduler.waiting or watched else UNBOUNDED),
            **self.static,
        )
        compiled = compile_seconds(began)
        self._known = fetch_state(state, self.shape.trace)
        if self.costs is not None and timed is not None:
            self.costs.took(timed[0], *self._last_block(timed[1]), time.perf_counter() - ready - compiled)
        self.state = state
        over = []
        for slot, prompt in scheduler.occupied():
            if self.stop or not self._known["running"][slot]:
                row = self._cut(Row.of(self._known, slot))
                if not row.running:
                    over.append((slot, prompt, row))
        scheduler.record_block(self._known["cycles"], time.perf_counter() - began - compiled, compiled)
        for slot, prompt, row in over:
            counts = row.stats(self.shape.draft_length, self.pair.eos, **scheduler.times(prompt))
            self._ended[prompt] = row, counts
            self._halted[slot] = True
            scheduler.release(slot)
        self.unfinished = len(self._ended) < self.batch
        return [prompt for _, prompt, _ in over]

    def row(self, prompt: int) -> Row:
        """What is known of an answer that was begun."""
        if prompt in self._ended:
            return self._ended[prompt][0]
        return Row.of(self._known, int(np.flatnonzero(self.scheduler.prompt == prompt)[0]))

    def text_tokens(self, prompt: int) -> tuple[np.ndarray, list[str]]:
        """The tokens of an answer that are text, and their origins: all but an EOS at the end."""
        return self.row(prompt).text_tokens(self.pair.eos)

    def cycles(self, prompt: int) -> list[stats.Cycle]:
        """The cycles of an answer."""
        return self.row(prompt).cycles

    def progress(self) -> Progress:
        tokens = sum(len(row.tokens) for row, _ in self._ended.values())
        tokens += sum(int(self._known["count"][slot]) for slot, _ in self.scheduler.occupied())
        return Progress(tokens, len(self._ended), self.batch, self.scheduler.seconds)

    def answer(self, prompt: int) -> Generation:
        """One answer that has ended."""
        return self._generation([prompt], stats.pool([self._ended[prompt][1]]))

    def result(self) -> Generation:
        """All answers, which have ended."""
        scheduler = self.scheduler
        each = [self._ended[prompt][1] for prompt in range(self.batch)]
        pooled = stats.pool(
            each,
            seconds=scheduler.seconds,
            prefill_seconds=scheduler.prefill_seconds,
            compile_seconds=scheduler.compile_seconds,
            slot_cycles=scheduler.slot_cycles,
        )
        return self._generation(range(self.batch), pooled)

    def _last_block(self, asked: int) -> tuple[np.ndarray, int, float]:
        """The longest draft of each cycle of the last block, over all slots, int `[cycles]`; how many cycles were asked
        for; and what the slot that committed fewest tokens committed in a cycle."""
        before, after = self.scheduler.cycles, self._known["cycles"]
        drafted, slowest = np.zeros(int(np.max(after - before)), np.int64), np.inf
        for slot, ran in enumerate(after - before):
            block = slice(before[slot], after[slot])
            drafted[:ran] = np.maximum(drafted[:ran], self._known["cycle_drafted"][slot, block])
            if ran:
                slowest = min(slowest, self._known["cycle_committed"][slot, block].mean())
        return drafted, asked, float(slowest)

    def _generation(self, of, counts: stats.Stats) -> Generation:
        ended = [self._ended[prompt][0] for prompt in of]
        text = [
            decode(self.pair.tokenizer, row.text_tokens(self.pair.eos)[0]) if row.text is None else row.text
            for row in ended
        ]
        traced = {}
        if self.shape.trace:
            traced = {name: [getattr(row, name) for row in ended] for name in ("kl", "logprobs", "cycles")}
        return Generation(
            text,
            [row.tokens for row in ended],
            [row.origin for row in ended],
            counts,
            cycle_costs=None if self.costs is None else self.costs.table(),
            tokenizer=self.pair.tokenizer,
            **traced,
        )

    def _row_keys(self, prompts: slice | np.ndarray) -> jax.Array:
        return jax.random.wrap_key_data(jax.device_put(self._keys[prompts]), impl=self._key_kind)

    def _cut(self, row: Row) -> Row:
        cut = cut_at_stop(self.pair.tokenizer, row.text_tokens(self.pair.eos)[0], self.stop) if self.stop else None
        return row if cut is None else row.cut(*cut)

    def _cache_slots(self) -> int:
        """The fewest slots of cache that hold a cycle of every answer in the making, and any prompt."""
        longest = int(self.lengths.max())
        if self._known:
            longest = max([longest] + [int(self._known["length"][slot]) for slot, _ in self.scheduler.occupied()])
        return self.sizes.slots(longest)

    def _resize(self, slots: int) -> bool:
        """Gives the caches so many slots, and returns whether they had others."""
        state = self.state
        if slots == state.cache.slots:
            return False
        self.state = rows.resized(state, slots)
        return True

    def _refill(self) -> None:
        """Puts prompts that wait into the slots of answers that ended."""
        entered = self.scheduler.admit()
        if not entered:
            return
        slots, some = map(list, zip(*entered, strict=True))
        places = np.resize(some, self.scheduler.slots)  # those after the first `len(some)` are not read
        self._halted[slots] = False
        began = time.perf_counter()
        self.state = programs.refill(
            *self.models,
            self.verifier,
            self.state,
            Entries(
                self._prompts[places],
                self.lengths[places],
                self._row_keys(places),
                self._budget[places],
                jax.device_put(np.resize(np.array(slots, np.int32), self.scheduler.slots)),
            ),
            self.numbers(),
            np.int32(len(some)),
            self._shared,
            **self.static,
        )
        compiled = compile_seconds(began)
        jax.block_until_ready(self.state.length)
        self.scheduler.record_prefill(some, time.perf_counter() - began - compiled, compiled)

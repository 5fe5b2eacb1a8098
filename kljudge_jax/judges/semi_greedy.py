"""Semi-greedy search: which of the draft's mismatches change the final answer (AutoJudge, arXiv 2504.20039, code).

For one question, greedy everywhere:

1. y is the target's answer, and the reference its final answer.
2. The draft reads y; a mismatch is a position past `left` where its argmax is another token than y's.
3. At the first one, t, the target continues y[:t] + the draft's token to the end.
4. With the same final answer t is unimportant and y is replaced by the new text; otherwise t is important and y stays.
5. `left` moves behind t; back to 2, until no mismatch is left. A draft's token that ends the text ends the search.

Many questions are in flight at once. Each keeps its prefix in both caches: a step back is a smaller length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.target import new_cache
from kljudge_jax.errors import InputError
from kljudge_jax.generation import prompts
from kljudge_jax.generation.chat_template import TemplateArgs
from kljudge_jax.generation.detokenize import decode
from kljudge_jax.judges.dataset import GAP_TOKENS
from kljudge_jax.judges.passes import WIDTHS, BatchedScorer, compare, roll_out
from kljudge_jax.judges.reference import KINDS, Reference, make_reference
from kljudge_jax.models.leaves import shortest_limit
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.parallel.hosts import fetch
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.verification.distributions import is_distribution
from kljudge_jax.verification.features import PRIMITIVES

_MOST_STEPS = 256  # on the device before the host looks, so that progress is reported
_LOGPROB = PRIMITIVES.index("target_logprob")


@dataclasses.dataclass(frozen=True)
class Options:
    """How the search goes.

    Attributes:
      max_new_tokens: the most tokens of an answer.
      reference: "target", the target's own final answer as published, or "gold", the problem's; questions that the
        target gets wrong are left out then.
      shortcut: a draft token that the target gives less probability than this is important without a rollout; the
        authors' shortcut is 0.01, 0 is none.
      batch: questions in flight. Labels do not depend on it.
      gap_tokens: how many tokens' logit gaps a row keeps, for `judges.correspondence`.
    """

    max_new_tokens: int = 256
    reference: str = "target"
    shortcut: float = 0.0
    batch: int = 32
    gap_tokens: int = GAP_TOKENS

    def __post_init__(self):
        if self.reference not in KINDS:
            raise InputError(f"choose a reference, {' or '.join(KINDS)}, not {self.reference!r}")
        if not 0 <= self.shortcut <= 1:
            raise InputError(f"the shortcut is a probability from 0 to 1, not {self.shortcut}")
        for name, least in (("max_new_tokens", 1), ("batch", 1), ("gap_tokens", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} starts at {least}, got {getattr(self, name)}")


@dataclasses.dataclass
class _Question:
    """A question in flight.

    Attributes:
      row: of the caches.
      index, problem: which.
      prompt: how many tokens it has.
      tokens: y, prompt included.
      limit: the most tokens of y.
      reference: what answers are compared with; None while the target writes its own.
      left: the search looks at positions from here on.
      choices: the draft's argmax after each token of y, as far as it has read.
      target_known, draft_known: how many leading tokens of y each cache holds.
      rows: of the dataset, so far.
      candidate: the row whose label a rollout will decide.
    """

    row: int
    index: int
    problem: Problem
    prompt: int
    tokens: np.ndarray
    limit: int
    reference: Reference | None = None
    answer: str = ""
    left: int = 0
    choices: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    target_known: int = 0
    draft_known: int = 0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    candidate: dict[str, Any] | None = None

    def mismatch(self) -> int | None:
        """The first position past `left` where the draft would have written another token."""
        others = np.flatnonzero(self.choices[self.left - 1 : len(self.tokens) - 1] != self.tokens[self.left :])
        return int(others[0]) + self.left if len(others) else None


def check_caches(pair: ModelPair) -> None:
    """Refuses, before anything compiles, a pair whose caches cannot go back to any token of an answer."""
    for model, whose in ((pair.target, "target"), (pair.draft, "draft")):
        rollback = jax.eval_shape(functools.partial(new_cache, model, 1, WIDTHS[-1], whose)).rollback
        if rollback is not None:
            raise InputError(
                f"mining goes back to any token of an answer, and the {whose}'s cache can take back {rollback} tokens "
                "(Cache.rollback): give the model a cache without a ring"
            )


class Search:
    """The search over many questions; what is on the device is two caches."""

    def __init__(
        self,
        pair: ModelPair,
        task: Task,
        problems: list[Problem],
        done: set[int],
        options: Options,
        ids: np.ndarray,
        template_args: TemplateArgs | None = None,
    ):
        assert pair.draft is not None
        self.pair, self.task, self.options, self.template_args = pair, task, options, template_args or TemplateArgs()
        self.most = shortest_limit(pair.target, pair.draft)  # tokens of a text
        self.ids = jnp.asarray(ids)
        self.eos = np.asarray(pair.eos, np.int32)
        every = [(i, problem, self._tokenize(problem)) for i, problem in enumerate(problems)]
        self.waiting = [question for question in every if question[0] not in done]
        # Sizes are those of the whole work, so that a run that goes on compiles nothing new.
        self.batch = min(options.batch, len(every))
        self.group = max(1, self.batch // 4)
        longest = max(len(tokens) for _, _, tokens in every) + options.max_new_tokens
        capacity = -(-(longest + WIDTHS[-1]) // 64) * 64
        self.target = BatchedScorer(pair.target, self.batch, capacity, self.group)
        self.draft = BatchedScorer(pair.draft, self.batch, capacity, self.group)
        # What the device is told of each row before a rollout.
        self.tokens = np.zeros((self.batch, capacity), np.int32)
        self.length, self.limit = np.ones((2, self.batch), np.int32)
        self.running = np.zeros(self.batch, bool)
        self.flight: dict[int, _Question] = {}
        self.finished: list[tuple[dict, list[dict]]] = []

    def run(self) -> Iterator[list[tuple[dict, list[dict]]]]:
        """Yields finished questions, record and rows, as they come; now and then none."""
        self.waiting.reverse()
        self._refill()
        while self.flight:
            self._search(self._roll())
            self._refill()
            yield self.finished
            self.finished = []

    def _tokenize(self, problem: Problem) -> np.ndarray:
        name = f"problem {problem.id}"
        vocab = self.pair.target.vocab_size
        tokens = prompts.tokenize(problem.prompt, self.pair.tokenizer, vocab, name, self.template_args)
        if self.most is not None and len(tokens) + self.options.max_new_tokens > self.most:
            raise InputError(
                f"{name} has {len(tokens)} tokens; with {self.options.max_new_tokens} new ones that is more than the "
                f"{self.most} of the models: lower max_new_tokens"
            )
        return tokens

    def _refill(self) -> None:
        """Gives every free row a question, whose answer the target begins to write."""
        fresh = []
        for row in range(self.batch):
            if row not in self.flight and self.waiting:
                index, problem, tokens = self.waiting.pop()
                self.flight[row] = question = _Question(
                    row, index, problem, len(tokens), tokens, len(tokens) + self.options.max_new_tokens
                )
                fresh.append(question)
        for some in self._groups(fresh):
            # A single token needs no pass: a rollout consumes the last one itself.
            work = [(q.row, q.tokens, 0) for q in some if q.prompt > 1]
            if work:
                self.target.ends(work)
        for question in fresh:
            self._start(question, question.tokens)

    def _start(self, question: _Question, tokens: np.ndarray) -> None:
        row = question.row
        self.tokens[row, : len(tokens)] = tokens
        self.length[row], self.limit[row], self.running[row] = len(tokens), question.limit, True

    def _roll(self) -> list[_Question]:
        """Lets the target write until some rows are done: those, with what it wrote put in `self.tokens`."""
        before = self.running.copy()
        some = np.flatnonzero(before)
        if len(some) > self.group or self.group == self.batch:
            rows, at = None, np.arange(self.batch)
        else:
            # The few that are left at the end do not pay for rows that stand idle.
            at = np.resize(some, self.group)
            rows = np.where(np.arange(self.group) < len(some), at, self.batch).astype(np.int32)
        running = self.running[at] if rows is None else rows < self.batch
        enough = np.int32(min(self.group, len(some)))
        *found, self.target.cache = roll_out(
            self.pair.target,
            self.target.cache,
            rows,
            self.tokens[at],
            self.length[at],
            self.limit[at],
            running,
            self.eos,
            enough,
            np.int32(_MOST_STEPS),
        )
        tokens, length, running, failed = fetch(found)
        if rows is not None:
            tokens, length, running, failed = (x[: len(some)] for x in (tokens, length, running, failed))
            at = some
        self.tokens[at], self.length[at], self.running[at] = tokens, length, running
        for row in at[failed]:
            self._finish(self.flight[row], "failed")
        done = np.flatnonzero(before & ~self.running).tolist()
        return [self.flight[row] for row in done if row in self.flight]

    def _search(self, stopped: list[_Question]) -> None:
        """Takes in what the target wrote, and brings each of these questions to its next rollout, or to its end."""
        open_ = [question for question in stopped if self._take_in(question)]
        while open_:
            for some in self._groups([q for q in open_ if len(q.choices) < len(q.tokens) - 1]):
                self._read(some)
            found = [(question, question.mismatch()) for question in open_]
            for question, at in found:
                if at is None:
                    self._finish(question, "mined")
            open_ = []
            for some in self._groups([pair for pair in found if pair[1] is not None]):
                open_ += self._probe(some)

    def _take_in(self, question: _Question) -> bool:
        """Labels the candidate, or makes the first answer the reference; whether the search goes on."""
        tokens = self.tokens[question.row, : self.length[question.row]].copy()
        if question.reference is None:
            question.answer = self._text(question, tokens)
            question.reference = make_reference(self.task, question.problem, question.answer, self.options.reference)
            if question.reference is None:
                self._finish(question, "no reference")
                return False
            question.tokens, question.left = tokens, question.prompt
            question.target_known = len(tokens) - 1
            return True
        return self._label(question, tokens)

    def _label(self, question: _Question, tokens: np.ndarray) -> bool:
        """Labels the candidate by the answer in `tokens`; whether the search goes on."""
        row, question.candidate = question.candidate, None
        assert row is not None and question.reference is not None
        at = question.prompt + row["position"]
        same = question.reference.same(self._text(question, tokens))
        goes_on = self._record(question, row, not same, rolled_out=len(tokens) > at + 1)
        if goes_on and same:
            # The draft has read y up to the mismatch, which was its own choice.
            question.tokens, question.choices = tokens, question.choices[:at]
            question.target_known, question.draft_known = max(len(tokens) - 1, at), at
        return goes_on

    def _record(self, question: _Question, row: dict[str, Any], important: bool, rolled_out: bool) -> bool:
        """Keeps a labelled row; whether the search goes on behind it, which it does not behind an end of text."""
        question.rows.append({**row, "important": important, "score": float(important), "rolled_out": rolled_out})
        question.left = question.prompt + row["position"] + 1
        ends = row["draft_token"] in self.eos
        if ends:
            self._finish(question, "mined")
        return not ends

    def _read(self, some: list[_Question]) -> None:
        """Lets the draft read the part of y that it has not seen."""
        starts = [min(q.draft_known, len(q.choices)) for q in some]
        work = [(q.row, q.tokens[start:-1], start) for q, start in zip(some, starts, strict=True)]
        for question, start, choices in zip(some, starts, self.draft.choices(work), strict=True):
            question.choices = np.concatenate([question.choices[:start], choices])
            question.draft_known = len(question.tokens) - 1

    def _probe(self, some: list[tuple[_Question, int]]) -> list[_Question]:
        """Puts the draft's token in at each mismatch and starts the rollouts; those that need none come back."""
        swapped = [np.append(q.tokens[:at], q.choices[at - 1]).astype(np.int32) for q, at in some]

        def work(known):
            starts = [min(getattr(q, known), at - 1) for q, at in some]
            return [(q.row, t[s:], s) for (q, _), t, s in zip(some, swapped, starts, strict=True)]

        target_ends, target_hidden = self.target.ends(work("target_known"))
        draft_ends, draft_hidden = self.draft.ends(work("draft_known"))
        judged = np.zeros(self.group, np.int32)
        judged[: len(some)] = [tokens[-1] for tokens in swapped]
        columns = {"target_hidden": target_hidden, "draft_hidden": draft_hidden}
        columns |= compare(target_ends, draft_ends, judged, self.ids)
        fit = jnp.all(is_distribution(target_ends) & is_distribution(draft_ends), axis=-1)
        columns, fit = fetch((columns, fit))
        open_ = []
        for i, ((question, at), tokens) in enumerate(zip(some, swapped, strict=True)):
            # Position `at` of both caches now holds the draft's token.
            question.target_known, question.draft_known = min(question.target_known, at), min(question.draft_known, at)
            if not fit[i]:
                self._finish(question, "failed")
                continue
            row: dict[str, Any] = {name: values[i] for name, values in columns.items()}
            row |= {
                "position": at - question.prompt,
                "target_token": int(question.tokens[at]),
                "draft_token": int(tokens[-1]),
            }
            if np.exp(row["primitives"][_LOGPROB]) < self.options.shortcut:
                open_ += [question] if self._record(question, row, important=True, rolled_out=False) else []
                continue
            question.candidate = row
            if row["draft_token"] in self.eos or len(tokens) >= question.limit:
                open_ += [question] if self._label(question, tokens) else []
            else:
                self._start(question, tokens)
        return open_

    def _finish(self, question: _Question, status: str) -> None:
        rows = question.rows if status == "mined" else []
        record = {
            "question": question.index,
            "problem": question.problem.id,
            "status": status,
            "important": sum(row["important"] for row in rows),
            "rollouts": sum(row["rolled_out"] for row in rows),
            "answer": question.answer,
        }
        self.finished.append((record, rows))
        self.running[question.row] = False
        del self.flight[question.row]

    def _text(self, question: _Question, tokens: np.ndarray) -> str:
        new = tokens[question.prompt :]
        return decode(self.pair.tokenizer, new[:-1] if len(new) and new[-1] in self.eos else new)

    def _groups(self, items: list) -> Iterator[list]:
        for first in range(0, len(items), self.group):
            yield items[first : first + self.group]

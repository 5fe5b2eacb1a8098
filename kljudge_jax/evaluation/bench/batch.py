"""What a bench times at one batch size: the prompts, the parts of a cycle, whole cycles, and whole answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.scorers import DraftScorer
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench import cycle_times
from kljudge_jax.evaluation.bench.timing import Probe
from kljudge_jax.generation.config import DecodingConfig, configured
from kljudge_jax.generation.run import Run
from kljudge_jax.generation.stats import Cycle
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.verification import Verifier

PLAIN = "none"
_ALL_CYCLES = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a bench measures.

    Attributes:
      rules: their names; plain decoding ("none"), which the others are compared with, is one of them.
      batches: answers decoded side by side, one size after another, in place of `config.batch`.
      config: how they are decoded.
      rounds: how many samples of everything count.
      verifiers: the rules themselves, by name, where they are not those of their spec strings.

    Raises:
      InputError: a number out of its range, or no room for a whole draft.
    """

    rules: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    config: DecodingConfig = dataclasses.field(default_factory=lambda: configured("bench", None, {}))
    rounds: int = 7
    verifiers: Mapping[str, Verifier] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.batches or min(*self.batches, self.rounds) < 1:
            raise InputError("batches and rounds start at 1")
        if self.config.max_new_tokens <= self.config.longest + 1:
            raise InputError(
                f"max_new_tokens leaves no room for a whole draft: give at least {self.config.longest + 2}"
            )

    def verifier(self, rule: str) -> Verifier | str | None:
        """A rule as `generate` takes it."""
        return None if rule == PLAIN else self.verifiers.get(rule, rule)

    def to_json(self) -> dict[str, Any]:
        """Everything that another bench has to have the same to be compared with."""
        own = {"rules": self.rules, "batches": self.batches, "rounds": self.rounds}
        return own | {name: value for name, value in self.config.to_json().items() if name != "batch"}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What is kept of the answers of one round, batch after batch.

    Attributes:
      tokens: committed.
      decoding_seconds: what they took, less prompts and compilation.
      prompt_seconds: what consuming the prompts took.
      cycles: of all rows.
      batch_cycles: how many the device ran: those of each batch's longest row.
      compile_seconds: what compiling took on top.
      failed: answers that ended because a model returned NaN or +inf.
    """

    tokens: int
    decoding_seconds: float
    prompt_seconds: float
    cycles: list[Cycle]
    batch_cycles: int
    compile_seconds: float
    failed: int

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Answers:
        stats = [run.result().stats for run in runs]
        cycles = [[run.cycles(row) for row in range(run.batch)] for run in runs]
        return cls(
            tokens=sum(s.tokens for s in stats),
            decoding_seconds=sum(s.seconds - s.prefill_seconds for s in stats),
            prompt_seconds=sum(s.prefill_seconds for s in stats),
            cycles=list(chain(*chain(*cycles))),
            batch_cycles=sum(max(map(len, rows)) for rows in cycles),
            compile_seconds=sum(run.compile_seconds for run in runs),
            failed=sum(s.failed for s in stats),
        )


class Batch:
    """One batch size: a started run a rule, and what is timed of it.

    Attributes:
      pair, plan, size: as given.
      groups: the prompts, a list a batch.
      runs: by rule, a run of the first group that has consumed its prompts and nothing more.
      draft: the draft model or head, or None where nothing uses one.
      answers: by rule, what every call gave, those before the first round included.
      common: the rule whose draft and passes stand for all that draft and score as it does.
      widths: the positions that its passes are timed at.
    """

    def __init__(self, pair: ModelPair, prompts: Sequence[Any], plan: Plan, size: int):
        self.pair, self.plan, self.size = pair, plan, size
        wanted = max(size, len(prompts) // size * size)
        asked = [prompts[i % len(prompts)] for i in range(wanted)]
        self.groups = [asked[i : i + size] for i in range(0, wanted, size)]
        # Parts are timed at one length: the most that an adaptive one drafts.
        self.runs = {rule: self._start(rule, self.groups[0], 0, plan.config.longest) for rule in plan.rules}
        self.draft = next((run.draft for run in self.runs.values() if run.draft is not None), None)
        self.answers: dict[str, list[Answers]] = {rule: [] for rule in plan.rules}
        usual = [r for r, run in self.runs.items() if r != PLAIN and run.shape.scorer == DraftScorer()]
        self.common = usual[0] if usual else PLAIN
        self.widths = widths(self.runs[self.common].shape.draft_length)

    def probes(self) -> dict[str, Probe]:
        """All that is timed, by name."""
        common = self.runs[self.common]
        found = {"prompts": cycle_times.prompts(common)}
        found |= {pass_over(width): cycle_times.target_pass(common, width) for width in self.widths}
        for rule, run in self.runs.items():
            if run.drafter is not None:
                found.setdefault(self.draft_of(rule), cycle_times.draft(run))
                if (observe := cycle_times.observe(run)) is not None:
                    found.setdefault(self.observe_of(rule), observe)
            if run.shape.scorer != common.shape.scorer:
                found[self.pass_of(rule)] = cycle_times.target_pass(run, run.shape.draft_length + 1)
            found[f"{rule}, verdicts"] = cycle_times.verdicts(run)
            found[f"{rule}, commit"] = cycle_times.commit(run)
            found[f"{rule}, cycle"] = cycle_times.whole_cycle(run)
            found[f"{rule}, answers"] = Probe(functools.partial(self._answer, rule), most=1)
        return {self.named(name): probe for name, probe in found.items()}

    def named(self, name: str) -> str:
        """A probe's name in a bench of several batch sizes."""
        return f"batch {self.size}, {name}"

    def draft_of(self, rule: str) -> str:
        """The probe of the rule's draft."""
        run, common = self.runs[rule], self.runs[self.common]
        same = (run.drafter, run.shape) == (common.drafter, common.shape) and _with_hidden(run) == _with_hidden(common)
        return "draft" if same else f"{rule}, draft"

    def observe_of(self, rule: str) -> str:
        """The probe of what the rule's drafter makes of a target pass."""
        return "observe" if self.draft_of(rule) == "draft" else f"{rule}, observe"

    def pass_of(self, rule: str) -> str:
        """The probe of the rule's target pass."""
        settings = self.runs[rule].shape
        same = settings.scorer == self.runs[self.common].shape.scorer
        return pass_over(settings.draft_length + 1) if same else f"{rule}, target pass"

    def _start(self, rule: str, prompts: Sequence[Any], draw: int, length: int | Adaptive) -> Run:
        config = self.plan.config
        return Run(
            self.pair,
            list(prompts),
            self.plan.verifier(rule),
            length,
            config.drafter,
            config.max_new_tokens,
            Sampling.create(config.temperature, config.top_k, config.top_p, config.min_p),
            config.stop,
            jax.random.key(config.seed + draw),
            False,
            section_ids=config.section_ids,
            template_args=config.template_args,
        )

    def _answer(self, rule: str, *_: Any) -> None:
        done = []
        for i, group in enumerate(self.groups):
            # Other draws every time: a rule that draws is then timed over many of them.
            draw = 1 + i + len(self.answers[rule]) * len(self.groups)
            run = self._start(rule, group, draw, self.plan.config.length)
            while run.unfinished:
                run.advance(_ALL_CYCLES)
            done.append(run)
        self.answers[rule].append(Answers.of(done))


def pass_over(positions: int) -> str:
    """The probe of a target pass over so many positions."""
    return f"target pass over {positions}"


def widths(draft_length: int) -> list[int]:
    """The positions that target passes are timed at: 1, 2, 3, 5, 9 and so on, and K + 1."""
    steps = [1 + 2**i for i in range(draft_length.bit_length()) if 2**i < draft_length]
    return sorted({1, *steps, draft_length + 1})


def _with_hidden(run: Run) -> bool:
    return "draft_hidden" in getattr(run.verifier, "needs", frozenset())

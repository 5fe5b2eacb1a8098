"""Speed alone: the parts of a cycle, whole answers, and what a cost model makes of them, in one interleaved run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np

from kljudge_jax.decoding.draft import ModelDraft
from kljudge_jax.decoding.run import Run
from kljudge_jax.decoding.scorers import DraftScorer
from kljudge_jax.decoding.words import parse_drafter
from kljudge_jax.evaluation import limits, parts
from kljudge_jax.evaluation.cost_model import CostModel, acceptance_rate, advice, expected_tokens
from kljudge_jax.evaluation.limits import Reached, Work
from kljudge_jax.evaluation.machine import peak_memory
from kljudge_jax.evaluation.timing import SHORTEST_SAMPLE, Probe, Timing, added, measure, spread
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, parameters
from kljudge_jax.verification import SyntheticAcceptance, parse_verifier

SCHEMA = 1
KIND = "bench"
PLAIN = "none"
_ALL_CYCLES = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a bench measures.

    Attributes:
      rules: their words, plain decoding ("none"), which the others are compared with, first.
      batches: answers decoded side by side, one size after another.
      draft_length: K.
      drafter: its word, as `decoding.words` reads it.
      max_new_tokens, temperature, top_k, top_p: as `generate` takes them.
      rounds: how many samples of everything count.
      seed: of the draws.
    """

    rules: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    draft_length: int = 8
    drafter: str = "model"
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    rounds: int = 7
    seed: int = 0


def run_bench(
    pair: ModelPair,
    prompts: Sequence[Any],
    plan: Plan,
    *,
    shortest: float = SHORTEST_SAMPLE,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures what `plan` asks for, and returns the figures as plain numbers for JSON.

    Args:
      pair: the models.
      prompts: each as `generate` takes one; a batch that wants more of them gets some twice.
      plan: what to measure.
      shortest: the least seconds of a sample.
      report: told of every compilation.
    """
    batches = [_Batch(pair, prompts, plan, size) for size in plan.batches]
    models = {"target": pair.target} | ({"draft": batches[0].draft} if batches[0].draft is not None else {})
    probes = {"square product": limits.matmul(pair.target.dtype)}
    for name, model in models.items():
        for axis in (0, 1):
            probes[f"read of the {name}, axis {axis}"] = limits.read(model, axis)
    for batch in batches:
        probes |= batch.probes()
    timings = measure(probes, plan.rounds, shortest=shortest, report=report)

    read = {name: [timings[f"read of the {name}, axis {axis}"] for axis in (0, 1)] for name in models}
    product = timings["square product"]
    reached = {name: limits.reached(limits.weight_bytes(m), read[name], product) for name, m in models.items()}
    return {
        "models": {name: describe_model(model, getattr(pair, f"{name}_name")) for name, model in models.items()},
        "dtype": str(pair.target.dtype),
        "plan": dataclasses.asdict(plan),
        "limits": {
            "read": {
                name: {"bytes": limits.weight_bytes(model), "bytes_per_second": reached[name].bytes_per_second}
                | min(read[name], key=lambda t: t.seconds).to_json()
                for name, model in models.items()
            },
            "matmul": {"size": limits.matmul_size(), "flops_per_second": reached["target"].flops_per_second}
            | product.to_json(),
        },
        "batches": [batch.figures(timings, reached) for batch in batches],
        "peak_memory": peak_memory(),
    }


def describe_model(model: Transformer, name: str) -> dict[str, Any]:
    """Name, shape and size of a model."""
    config = model.config
    shape = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
    return {
        "name": name,
        "family": config.family,
        "shape": {key: getattr(config, key) for key in shape},
        "parameters": sum(leaf.size for leaf in parameters(model).values()),
        "bytes": sum(leaf.nbytes for leaf in parameters(model).values()),
    }


def widths(draft_length: int) -> list[int]:
    """The positions that target passes are timed at: 1, 2, 3, 5, 9 and so on, and K + 1."""
    steps = [1 + 2**i for i in range(draft_length.bit_length()) if 2**i < draft_length]
    return sorted({1, *steps, draft_length + 1})


class _Batch:
    """One batch size: a started run a rule, what is timed of it, and the figures that come of it."""

    def __init__(self, pair: ModelPair, prompts: Sequence[Any], plan: Plan, size: int):
        self.pair, self.plan, self.size = pair, plan, size
        wanted = max(size, len(prompts) // size * size)
        asked = [prompts[i % len(prompts)] for i in range(wanted)]
        self.groups = [asked[i : i + size] for i in range(0, wanted, size)]
        self.runs = {rule: self._start(rule, self.groups[0], 0) for rule in plan.rules}
        self.draft = next((run.draft for run in self.runs.values() if run.draft is not None), None)
        self.answers: dict[str, list[list[Run]]] = {rule: [] for rule in plan.rules}
        drafting = [rule for rule in plan.rules if rule != PLAIN]
        # Its run scores as most rules do; a rule that drafts or scores in its own way has its own parts timed.
        self.common = next((r for r in drafting if self.runs[r].settings.scorer == DraftScorer()), plan.rules[0])
        self.widths = widths(self.runs[self.common].settings.draft_length)

    def _start(self, rule: str, prompts: Sequence[Any], draw: int) -> Run:
        plan = self.plan
        sampling = (plan.temperature, plan.top_k, plan.top_p)
        drafter, key = parse_drafter(plan.drafter), jax.random.key(plan.seed + draw)
        return Run(
            self.pair, list(prompts), None if rule == PLAIN else rule, plan.draft_length, drafter, plan.max_new_tokens,
            sampling, (), key, False,
        )  # fmt: skip

    def _name(self, *words: str) -> str:
        return ", ".join([f"batch {self.size}", *words])

    def probes(self) -> dict[str, Probe]:
        common = self.runs[self.common]
        found = {"prompts": parts.prompts(common)}
        found |= {f"target pass over {width}": parts.target_pass(common, width) for width in self.widths}
        for rule, run in self.runs.items():
            if run.settings.drafter is not None:
                found.setdefault(self._draft_of(rule), parts.draft(run))
            if run.settings.scorer != common.settings.scorer:
                found[self._pass_of(rule)] = parts.target_pass(run, run.settings.draft_length + 1)
            found[f"{rule}, verdicts"] = parts.verdicts(run)
            found[f"{rule}, commit"] = parts.commit(run)
            found[f"{rule}, cycle"] = parts.whole_cycle(run)
            found[f"{rule}, answers"] = Probe(lambda _, n, rule=rule: self._answer(rule), most=1)
        return {self._name(name): probe for name, probe in found.items()}

    def _draft_of(self, rule: str) -> str:
        run, common = self.runs[rule], self.runs[self.common]
        same = _needs(run) == _needs(common) and run.settings == common.settings
        return "draft" if same else f"{rule}, draft"

    def _pass_of(self, rule: str) -> str:
        settings = self.runs[rule].settings
        if settings.scorer == self.runs[self.common].settings.scorer:
            return f"target pass over {settings.draft_length + 1}"
        return f"{rule}, target pass"

    def _answer(self, rule: str) -> None:
        done = []
        for i, group in enumerate(self.groups):
            run = self._start(rule, group, 1 + i + len(self.answers[rule]) * len(self.groups))
            while run.unfinished:
                run.advance(_ALL_CYCLES)
            done.append(run)
        self.answers[rule].append([_Answered.of(run) for run in done])

    def figures(self, timings: dict[str, Timing], reached: dict[str, Reached]) -> dict[str, Any]:
        mine = {name: timings[self._name(name)] for name in self.probes_known(timings)}
        common = self.runs[self.common]
        capacity, plan = common.settings.capacity, self.plan
        target = {}
        for width in self.widths:
            timing = mine[f"target pass over {width}"]
            work = limits.pass_work(self.pair.target, self.size, width, capacity)
            target[str(width)] = timing.to_json() | _achieved(timing, work, reached["target"])
        ids = int(common.state.length.sum())
        prompts = mine["prompts"]
        found = {
            "batch": self.size,
            "capacity": capacity,
            "prompts": {
                "n": len(self.groups) * self.size,
                "tokens": ids,
                "tokens_per_second": ids / prompts.seconds,
                **prompts.to_json(),
            },
            "target_pass": target,
            "draft": None,
            "rules": [],
        }
        if "draft" in mine:
            draft, length = mine["draft"], plan.draft_length
            step = Timing(tuple(s / length for s in draft.samples), draft.repetitions, draft.compile_seconds)
            found["draft"] = {
                **draft.to_json(),
                "step": step.to_json(),
                "step_x_plain_pass": draft.seconds / length / mine["target pass over 1"].seconds,
            }
            if "draft" in reached and isinstance(parse_drafter(plan.drafter), ModelDraft):
                found["draft"] |= _achieved(draft, self._draft_work(), reached["draft"])
        found["rules"] = [self._rule_figures(rule, mine, reached) for rule in plan.rules]
        return found

    def probes_known(self, timings: dict[str, Timing]) -> list[str]:
        start = self._name("")
        return [name.removeprefix(start) for name in timings if name.startswith(start)]

    def _draft_work(self) -> Work:
        capacity = self.runs[self.common].settings.capacity
        first = limits.pass_work(self.draft, self.size, 2, capacity)
        return first + limits.pass_work(self.draft, self.size, 1, capacity).times(self.plan.draft_length - 1)

    def _rule_figures(self, rule: str, mine: dict[str, Timing], reached: dict[str, Reached]) -> dict[str, Any]:
        run, size = self.runs[rule], self.size
        length = run.settings.draft_length
        answers = [pooled for pooled in map(_pool, self.answers[rule][-self.plan.rounds :])]
        seconds, cycle = mine[f"{rule}, answers"].samples, mine[f"{rule}, cycle"]
        speeds = [a.tokens / s for a, s in zip(answers, seconds, strict=True)]
        decoding = [a.tokens / (a.seconds - a.prefill_seconds) for a in answers]
        cycles = [c for a in answers for c in a.cycles]
        per_pass = sum(a.tokens for a in answers) / sum(a.row_cycles for a in answers)
        occupancy = sum(a.row_cycles for a in answers) / (size * sum(a.batch_cycles for a in answers))

        pieces = {"draft": mine[self._draft_of(rule)]} if length else {}
        pieces["target"] = mine[self._pass_of(rule)]
        pieces["verdicts"], pieces["commit"] = mine[f"{rule}, verdicts"], mine[f"{rule}, commit"]
        total = added(*pieces.values())
        host = [
            (s - a.prefill_seconds) / a.batch_cycles - c
            for a, s, c in zip(answers, seconds, cycle.samples, strict=True)
        ]

        model = self._cost_model(rule, mine)
        rate = _known_rate(rule, self.plan) if length else 0.0
        if rate is None:
            rate = acceptance_rate(cycles)
        found = {
            "rule": rule,
            "draft_length": length,
            "tokens": [a.tokens for a in answers],
            **spread(speeds, "tokens_per_second"),
            "decoding": spread(decoding, "tokens_per_second"),
            "mean_acceptance_length": per_pass,
            "compile_seconds": run_compile_seconds(self.answers[rule]),
            "occupancy": occupancy,
            "cycle": cycle.to_json(),
            "sum_of_parts": total.to_json(),
            "cycle_over_parts": spread([c / t for c, t in zip(cycle.samples, total.samples, strict=True)], "ratio"),
            "profile": self._profile(rule, pieces, host, cycle, reached),
            "speed": None,
            "failed": sum(a.failed for a in answers),
        }
        if PLAIN in self.runs and rule != PLAIN:
            plain = [
                a.tokens / s
                for a, s in zip(
                    map(_pool, self.answers[PLAIN][-self.plan.rounds :]),
                    mine[f"{PLAIN}, answers"].samples,
                    strict=True,
                )
            ]
            found["speed"] = spread([a / b for a, b in zip(speeds, plain, strict=True)], "ratio")
        if rate is not None:
            predicted = size * occupancy * model.tokens_per_second(rate, length)
            measured = float(np.median(decoding))
            found["model"] = {
                "acceptance_rate": rate,
                "acceptance_length": expected_tokens(rate, length),
                "draft_step_seconds": model.draft_step,
                "pass_seconds": model.pass_seconds(length),
                "tokens_per_second": predicted,
                "measured_tokens_per_second": measured,
                "error": predicted / measured - 1,
            }
            if length:
                found["model"] |= {
                    "recommended_draft_length": model.best_length(rate),
                    "advice": advice(model, rate),
                    "by_draft_length": [size * model.tokens_per_second(rate, k) for k in range(length + 1)],
                }
        return found

    def _cost_model(self, rule: str, mine: dict[str, Timing]) -> CostModel:
        length = self.runs[rule].settings.draft_length

        def overhead(of: str) -> float:
            return mine[f"{of}, verdicts"].seconds + mine[f"{of}, commit"].seconds

        if self._pass_of(rule).startswith("target"):
            passes = {width: mine[f"target pass over {width}"].seconds for width in self.widths}
        else:
            passes = {1: mine["target pass over 1"].seconds, length + 1: mine[self._pass_of(rule)].seconds}
        step = mine[self._draft_of(rule)].seconds / length if length else 0.0
        known = {0: overhead(PLAIN)} if PLAIN in self.runs else {}
        return CostModel(step, passes, known | {length: overhead(rule)})

    def _profile(self, rule, pieces, host, cycle, reached) -> list[dict[str, Any]]:
        """Where a cycle goes, and how far each part is from its floor; the host's share is what answers took beyond."""
        run = self.runs[rule]
        length = run.settings.draft_length
        floors = {"verdicts": reached["target"].floor(limits.verdict_work(_vocab(self.pair), self.size, length))}
        rows = run.state.caches.target.length.shape[0]
        work = limits.pass_work(self.pair.target, rows, run.settings.scorer.slots(length), run.settings.capacity)
        floors["target"] = reached["target"].floor(work)
        if "draft" in reached and rows == self.size:
            floors["draft"] = reached["draft"].floor(self._draft_work())
        lines = []
        for part, timing in pieces.items():
            floor = floors.get(part)
            lines.append(
                {
                    "part": part,
                    **spread(timing.samples, "seconds"),
                    "share": timing.seconds / cycle.seconds,
                    "floor_seconds": floor,
                    "x_floor": None if floor is None else timing.seconds / floor,
                }
            )
        middle = spread(host, "seconds")
        share = middle["seconds"] / cycle.seconds
        return [*lines, {"part": "host", **middle, "share": share, "floor_seconds": None, "x_floor": None}]


@dataclasses.dataclass(frozen=True)
class _Answered:
    """What is kept of a finished run, or of several one after another."""

    tokens: int
    seconds: float
    prefill_seconds: float
    compile_seconds: float
    cycles: list
    row_cycles: int  # cycles of all rows
    batch_cycles: int  # cycles that the device ran: those of each batch's longest row
    failed: int

    @classmethod
    def of(cls, run: Run) -> _Answered:
        stats = run.result().stats
        cycles = [run.cycles(row) for row in range(run.batch)]
        return cls(
            stats.tokens, stats.seconds, stats.prefill_seconds, stats.compile_seconds, list(chain(*cycles)),
            stats.cycles, max(map(len, cycles)), stats.failed,
        )  # fmt: skip


def _pool(runs: Sequence[_Answered]) -> _Answered:
    names = [field.name for field in dataclasses.fields(_Answered)]
    return _Answered(*(sum((getattr(run, name) for run in runs), [] if name == "cycles" else 0) for name in names))


def run_compile_seconds(rounds: Sequence[Sequence[_Answered]]) -> float:
    """What compiling took in the runs of all rounds, warm-up included."""
    return sum(run.compile_seconds for runs in rounds for run in runs)


def _achieved(timing: Timing, work: Work, reached: Reached) -> dict[str, float]:
    """Bandwidth and arithmetic of something timed, and the share of what the device reached."""
    bandwidth, flops = work.bytes / timing.seconds, work.flops / timing.seconds
    return {
        "bytes": work.bytes,
        "bytes_per_second": bandwidth,
        "bandwidth_share": bandwidth / reached.bytes_per_second,
        "flops": work.flops,
        "flops_per_second": flops,
        "flops_share": flops / reached.flops_per_second,
        "floor_seconds": reached.floor(work),
    }


def _known_rate(rule: str, plan: Plan) -> float | None:
    """The acceptance rate of a rule that accepts by a coin alone."""
    verifier = parse_verifier(rule, plan.temperature == 0)
    return float(verifier.rate) if isinstance(verifier, SyntheticAcceptance) else None


def _needs(run: Run) -> bool:
    return "draft_hidden" in getattr(run.verifier, "needs", frozenset())


def _vocab(pair: ModelPair) -> int:
    return pair.target.config.vocab_size

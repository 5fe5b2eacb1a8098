"""The figures of a bench at one batch size, from its timings and its answers, as plain numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kljudge_jax.drafters.eagle3_draft import Eagle3Draft
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.drafters.specs import spec_of
from kljudge_jax.evaluation.bench import limits
from kljudge_jax.evaluation.bench.batch import PLAIN, Batch, Plan, pass_over
from kljudge_jax.evaluation.bench.cost_model import CostModel, acceptance_rate, advice, expected_tokens, nondecreasing
from kljudge_jax.evaluation.bench.limits import Reached, Work
from kljudge_jax.evaluation.bench.timing import Timing, added, spread
from kljudge_jax.models.eagle3 import Eagle3Head
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.verification import SyntheticAcceptance, parse_verifier

EMPTY_CALL = "empty call"  # the probe of `limits.empty_call`

# A model that is further from what was measured knows too little of this machine to advise.
_LARGEST_ERROR = 0.2


def batch_figures(
    batch: Batch, timings: Mapping[str, Timing], reached: Mapping[str, Reached], busy: bool = False
) -> dict[str, Any]:
    """All figures of a batch size; `reached` holds what the device reached on each model's bytes.

    On a machine that is `busy` with other work, no draft length is advised.
    """
    prompts = timings[batch.named("prompts")]
    ids = int(batch.runs[batch.common].lengths.sum())
    capacity = batch.runs[batch.common].state.cache.slots
    passes = {}
    for width in batch.widths:
        timing = timings[batch.named(pass_over(width))]
        work = _pass_work(batch.pair.target, batch.runs[batch.common], batch.size, width)
        passes[str(width)] = timing.to_json() | ({} if work is None else _achieved(timing, work, reached["target"]))
    return {
        "batch": batch.size,
        "capacity": capacity,
        "prompts": {
            "n": len(batch.groups) * batch.size,
            "tokens": ids,
            "tokens_per_second": ids / prompts.seconds,
            **prompts.to_json(),
        },
        "draft": _draft(batch, timings, reached),
        "observe": _observe(batch, timings, reached),
        "target_pass": passes,
        "rules": [_rule(batch, rule, timings, reached, busy) for rule in batch.plan.rules],
    }


def _draft(batch, timings, reached) -> dict[str, Any] | None:
    """A draft of K tokens, and one step of it."""
    if batch.named("draft") not in timings:
        return None
    draft, length = timings[batch.named("draft")], batch.plan.config.longest
    step = Timing(tuple(s / length for s in draft.samples), draft.repetitions, draft.compile_seconds)
    plain = timings[batch.named(pass_over(1))]
    work = _draft_work(batch, batch.common)
    return {
        **draft.to_json(),
        **({} if work is None else _achieved(draft, work, reached["draft"])),
        "step": step.to_json(),
        "step_x_plain_pass": spread([a / b for a, b in zip(step.samples, plain.samples, strict=True)], "ratio"),
    }


def _observe(batch, timings, reached) -> dict[str, Any] | None:
    """What a head makes of the target's states of a pass over a draft, once a cycle."""
    if batch.named("observe") not in timings:
        return None
    timing, work = timings[batch.named("observe")], _observe_work(batch, batch.common)
    return timing.to_json() | ({} if work is None else _achieved(timing, work, reached["draft"]))


def _rule(batch, rule, timings, reached, busy) -> dict[str, Any]:
    def timing(name):
        return timings[batch.named(name)]

    length = batch.runs[rule].shape.draft_length
    answers, seconds = batch.answers[rule][-batch.plan.rounds :], timing(f"{rule}, answers").samples
    speeds, plain = _speeds(batch, rule, timings), _speeds(batch, PLAIN, timings)
    decoding = [a.tokens / a.decoding_seconds for a in answers]
    row_cycles, batch_cycles = sum(len(a.cycles) for a in answers), sum(a.batch_cycles for a in answers)

    pieces = {} if not length else {"draft": timing(batch.draft_of(rule))}
    pieces |= {"target": timing(batch.pass_of(rule)), "verdicts": timing(f"{rule}, verdicts")}
    if batch.named(batch.observe_of(rule)) in timings and length:
        pieces |= {"observe": timing(batch.observe_of(rule))}
    pieces |= {"commit": timing(f"{rule}, commit")}
    cycle, total = timing(f"{rule}, cycle"), added(*pieces.values())
    # What a cycle of an answer took beyond one in a loop of its own: dispatch, what came back, text.
    host = [
        (s - a.prompt_seconds) / a.batch_cycles - c for a, s, c in zip(answers, seconds, cycle.samples, strict=True)
    ]
    # The least of it: every batch is one call of the compiled loop at least.
    host_floor = timings[EMPTY_CALL].seconds * len(answers) * len(batch.groups) / batch_cycles
    # Rows that have ended wait for the longest one of their batch.
    occupancy = row_cycles / (batch.size * batch_cycles)
    # A target that failed at once has written nothing to be compared with.
    compared = rule != PLAIN and all(plain)
    speed = spread([a / b for a, b in zip(speeds, plain, strict=True)], "ratio") if compared else None
    return {
        "rule": rule,
        "draft_length": spec_of(batch.plan.config.length) if length else 0,
        **spread(speeds, "tokens_per_second"),
        "speed": speed,
        "decoding": spread(decoding, "tokens_per_second"),
        "tokens": sum(a.tokens for a in answers),
        "cycles": row_cycles,
        "mean_acceptance_length": sum(a.tokens for a in answers) / row_cycles,
        "occupancy": occupancy,
        "cycle": cycle.to_json(),
        "sum_of_parts": spread(total.samples, "seconds"),
        "cycle_over_parts": spread([c / t for c, t in zip(cycle.samples, total.samples, strict=True)], "ratio"),
        "compile_seconds": batch.runs[rule].compile_seconds + sum(a.compile_seconds for a in batch.answers[rule]),
        "profile": _profile(batch, rule, pieces, (host, host_floor), cycle, reached),
        "model": _model(batch, rule, timings, occupancy, decoding, speed, busy),
        "failed": sum(a.failed for a in answers),
    }


def _speeds(batch, rule, timings) -> list[float]:
    """Tokens per second of every round, from prompt to text."""
    rounds = batch.answers[rule][-batch.plan.rounds :]
    seconds = timings[batch.named(f"{rule}, answers")].samples
    return [answers.tokens / s for answers, s in zip(rounds, seconds, strict=True)]


def _model(batch, rule, timings, occupancy, decoding, speed, busy) -> dict[str, Any] | None:
    """What the cost model says of a rule beside what was measured; None where no draft token was tested, or where
    nothing can be compared: answers failed, or their draft length adapted."""
    length = batch.runs[rule].shape.draft_length
    answers = batch.answers[rule][-batch.plan.rounds :]
    if any(a.failed for a in answers) or (length and (speed is None or length != batch.plan.config.length)):
        return None
    rate = 0.0 if rule == PLAIN else known_rate(rule, batch.plan)
    if rate is None:
        rate = acceptance_rate(cycle for a in answers for cycle in a.cycles)
    if rate is None:
        return None
    model = _cost_model(batch, rule, timings)
    predicted, measured = batch.size * occupancy * model.tokens_per_second(rate, length), float(np.median(decoding))
    found = {
        "acceptance_rate": rate,
        "acceptance_length": expected_tokens(rate, length),
        "draft_step_seconds": model.draft_step,
        "pass_seconds": model.pass_seconds(length),
        "tokens_per_second": predicted,
        "measured_tokens_per_second": measured,
        "error": predicted / measured - 1,
    }
    if length:
        # Of each round alone: how far timing decides what is best.
        best = [_cost_model(batch, rule, timings, i).best_length(rate) for i in range(batch.plan.rounds)]
        why_not = no_advice(found["error"], busy)
        found |= {
            "recommended_draft_length": None if why_not else model.best_length(rate),
            "best_draft_lengths": spread(best, "draft_length"),
            "advice": why_not or advised(model, rate, best, length, speed),
            "by_draft_length": [batch.size * model.tokens_per_second(rate, k) for k in range(length + 1)],
        }
    return found


def no_advice(error: float, busy: bool) -> str:
    """Why no draft length is recommended; "" where one is."""
    if busy:
        return "no advice: the machine was busy with other work"
    if abs(error) > _LARGEST_ERROR:
        return f"no advice: the cost model is {100 * error:+.0f} % from what was measured"
    return ""


def advised(model: CostModel, rate: float, best: Sequence[int], length: int, speed: Mapping[str, float]) -> str:
    """The recommended draft length, the best ones of single rounds, and what was measured at `length`."""
    low, high = min(best), max(best)
    rounds = f"{low} in every round" if low == high else f"{low} to {high} in single rounds"
    return (
        f"{advice(model, rate)}; the best length was {rounds}; measured with {length}: {speed['ratio']:.2f} times "
        f"plain ({speed['low']:.2f} to {speed['high']:.2f})"
    )


def _cost_model(batch, rule, timings, turn: int | None = None) -> CostModel:
    """Of the medians over rounds, or of one round."""

    def seconds(name):
        timing = timings[batch.named(name)]
        return timing.seconds if turn is None else timing.samples[turn]

    def overhead(of):
        return seconds(f"{of}, verdicts") + seconds(f"{of}, commit")

    length = batch.runs[rule].shape.draft_length
    own = batch.pass_of(rule)
    if own == pass_over(length + 1):
        passes = {width: seconds(pass_over(width)) for width in batch.widths}
    else:
        passes = {1: seconds(pass_over(1)), length + 1: seconds(own)}
    step = seconds(batch.draft_of(rule)) / length if length else 0.0
    plain, drafted = overhead(PLAIN), overhead(rule)
    costs = {0: plain, length: drafted}
    if length and batch.named(batch.observe_of(rule)) in timings:
        # A head reads its weights for the target's states whatever the length, and not at all in plain decoding.
        told = seconds(batch.observe_of(rule))
        costs = {0: plain, 1: plain + (drafted - plain) / length + told, length: drafted + told}
    return CostModel(step, nondecreasing(passes), costs)


def _profile(batch, rule, pieces, host, cycle, reached) -> list[dict[str, Any]]:
    """Where a cycle goes, and how far each part is from its floor. `host` is its samples and their floor, a cycle.

    A draft that no draft model and no head writes has no floor.
    """
    run, target = batch.runs[rule], batch.pair.target
    length, rows = run.shape.draft_length, run.state.cache.length.shape[0]
    scored = _pass_work(target, run, rows, run.shape.scorer.slots(length))
    work = {
        "target": scored,
        "verdicts": limits.verdict_work(target.vocab_size, rows, length),
        "draft": _draft_work(batch, rule) if length else None,
        "observe": _observe_work(batch, rule) if length else None,
        "commit": limits.commit_work(batch.size, length),
    }
    lines = []
    for part, timing in pieces.items():
        device = reached["draft" if part in ("draft", "observe") and "draft" in reached else "target"]
        floor = device.floor(work[part]) if work.get(part) is not None else None
        lines.append(
            {
                "part": part,
                **spread(timing.samples, "seconds"),
                "share": timing.seconds / cycle.seconds,
                "floor_seconds": floor,
                "x_floor": None if floor is None else timing.seconds / floor,
            }
        )
    samples, floor = host
    middle = spread(samples, "seconds")
    share, times = middle["seconds"] / cycle.seconds, middle["seconds"] / floor
    return [*lines, {"part": "host", **middle, "share": share, "floor_seconds": floor, "x_floor": times}]


def _draft_work(batch, rule) -> Work | None:
    """What a draft reads and computes where the draft model writes it, a pass over two tokens, then over one each; or a
    head."""
    run = batch.runs[rule]
    rows = run.state.cache.length.shape[0]
    if isinstance(batch.draft, Eagle3Head) and isinstance(run.drafter, Eagle3Draft):
        slots = limits.slots_read(batch.draft, run.lengths, 1, run.state.cache.slots)
        return limits.head_draft_work(batch.draft, rows, run.shape.draft_length, slots)
    if not isinstance(run.drafter, ModelDraft):
        return None
    first, others = (_pass_work(batch.draft, batch.runs[rule], rows, n) for n in (2, 1))
    return None if first is None or others is None else first + others.times(run.shape.draft_length - 1)


def _observe_work(batch, rule) -> Work | None:
    """What a head reads and computes as it is told of a target pass."""
    run = batch.runs[rule]
    if not (isinstance(batch.draft, Eagle3Head) and isinstance(run.drafter, Eagle3Draft)):
        return None
    rows, positions = run.state.cache.length.shape[0], run.shape.draft_length + 1
    slots = limits.slots_read(batch.draft, run.lengths, positions, run.state.cache.slots)
    return limits.head_observe_work(batch.draft, rows, positions, slots)


def _pass_work(model, run, rows: int, positions: int) -> Work | None:
    """A pass after the prompts of a run, where its parts are timed.

    None of another's model: nothing says of a tree of arrays which of them a token multiplies, for a table is looked up
    and some experts are left out.
    """
    if not isinstance(model, Transformer):
        return None
    slots = limits.slots_read(model, run.lengths, positions, run.state.cache.slots)
    return limits.pass_work(model, rows, positions, slots)


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


def known_rate(rule: str, plan: Plan) -> float | None:
    """The acceptance rate of a rule that accepts at a fixed rate; None of any other."""
    verifier = plan.verifier(rule)
    verifier = parse_verifier(verifier, plan.config.greedy) if isinstance(verifier, str) else verifier
    return float(verifier.rate) if isinstance(verifier, SyntheticAcceptance) else None

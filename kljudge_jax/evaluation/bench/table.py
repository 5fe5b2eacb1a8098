"""A bench as Markdown: what it was measured on, the parts of a cycle, the rules, and where a cycle goes."""

from __future__ import annotations

from collections.abc import Sequence

from kljudge_jax.evaluation.bench.records import BatchFigures, BenchFigures, Pass, RuleFigures, Seconds, Spread, Timed
from kljudge_jax.evaluation.sweep.records import CellRecord, SweepRow
from kljudge_jax.machine import Machine, is_busy
from kljudge_jax.text_table import columns, markdown, ranged


def bench_markdown(found: BenchFigures, profile: bool = False) -> str:
    """The document that `kljudge bench` writes, as Markdown."""
    blocks = [_setting(found), _busy(found), _limits(found)]
    for batch in found.batches:
        blocks += [f"Batch {batch.batch}: parts of a cycle\n", markdown(_parts(batch))]
    blocks += ["Rules\n", markdown(_rules(found.batches)), _advice(found.batches)]
    if profile:
        for batch in found.batches:
            for rule in batch.rules:
                blocks += [f"Batch {batch.batch}, {title(rule)}: where a cycle goes\n", markdown(_profile(rule))]
    return "\n".join(block for block in blocks if block)


def machine_label(machine: Machine) -> str:
    """The device in a few words."""
    many = f"{machine.devices} x " if machine.devices > 1 else ""
    if machine.backend == "cpu":
        return f"{many}{machine.processor}, {machine.cores} cores"
    return f"{many}{machine.device}"


def _setting(found: BenchFigures) -> str:
    machine, plan = found.machine, found.plan
    models = "; ".join(
        f"{name} {model.name}, {_count(model.parameters)} parameters" for name, model in found.models.items()
    )
    memory = found.peak_memory
    return (
        f"{models}; {found.dtype}. {machine_label(machine)}, jax {machine.versions['jax']}, {machine.date}. "
        f"Median (10 to 90 %) of {plan.rounds} rounds, all measurements taking turns. "
        f"Peak memory ({memory.of}): {memory.bytes / 1e9:.2f} GB. Programs found compiled on disk: "
        f"{found.found_compiled}.\n"
    )


def _busy(found: BenchFigures) -> str:
    """A warning where others were at work as well."""
    loads, cores = found.load_average, found.machine.cores
    if not is_busy(loads, cores):
        return ""
    load = max(load for load in loads if load is not None)
    return (
        f"The machine was busy (load average {load:.0f} on {cores} cores): times are rough, and ratios hold better.\n"
    )


def _limits(found: BenchFigures) -> str:
    limits = found.limits
    reads = ", ".join(
        f"{read.bytes_per_second / 1e9:.1f} GB/s over the {read.bytes / 1e6:.1f} MB of the {name}"
        for name, read in limits.read.items()
    )
    product = limits.matmul
    return (
        f"What this device reached in the same run: a plain read {reads}; a square product of {product.size} "
        f"{product.flops_per_second / 1e9:.0f} GFLOP/s. Shares below are of these.\n"
    )


def _parts(batch: BatchFigures) -> list[list[str]]:
    plain = batch.target_pass[1].seconds
    timings: dict[str, Timed] = {"draft": batch.draft, "draft step": batch.draft.step} if batch.draft else {}
    if batch.observe is not None:
        timings["observe (head)"] = batch.observe
    for width, over in batch.target_pass.items():
        timings[f"target pass, {width} position{'' if width == 1 else 's'}"] = over
    timings[f"prompts ({batch.prompts.tokens} tokens)"] = batch.prompts
    cells = [["part", "ms", "times a plain pass", "GB/s", "share", "GFLOP/s", "share"]]
    for name, timing in timings.items():
        achieved = [""] * 4
        if isinstance(timing, Pass):
            achieved = [_of(timing.bytes_per_second, 1e-9, ".1f"), _of(timing.bandwidth_share, 100, ".0f", " %")]
            achieved += [_of(timing.flops_per_second, 1e-9, ".1f"), _of(timing.flops_share, 100, ".0f", " %")]
        cells.append([name, milliseconds(timing), f"{timing.seconds / plain:.2f}", *achieved])
    return cells


def _rules(batches: Sequence[BatchFigures]) -> list[list[str]]:
    lines = []
    for batch in batches:
        for rule in batch.rules:
            model = rule.model
            seconds = {part.part: part.seconds for part in rule.profile}
            lines.append(
                {
                    "batch": str(batch.batch),
                    "rule": title(rule),
                    "tokens/s": spread_of(rule, "tokens_per_second", ".1f"),
                    "speedup": spread_of(rule.speed, "ratio", ".2f") if rule.speed else "",
                    "mean acceptance length": f"{rule.mean_acceptance_length:.2f}",
                    "verdicts + commit, ms": f"{1e3 * (seconds['verdicts'] + seconds['commit']):.3g}",
                    "cycle, ms": milliseconds(rule.cycle),
                    "/ sum of parts": f"{rule.cycle_over_parts.ratio:.2f}",
                    "decoding, tokens/s": f"{rule.decoding.tokens_per_second:.1f}",
                    "cost model": f"{model.tokens_per_second:.1f}" if model else "",
                    "error": f"{100 * model.error:+.0f} %" if model else "",
                    "compile, s": f"{rule.compile_seconds:.1f}",
                }
            )
    return columns(lines)


def _advice(batches: Sequence[BatchFigures]) -> str:
    lines = [
        f"- batch {batch.batch}, {rule.rule}: {rule.model.advice} (acceptance rate "
        f"{rule.model.acceptance_rate:.2f}, draft step {1e3 * rule.model.draft_step_seconds:.3g} ms, pass "
        f"with verdicts {1e3 * rule.model.pass_seconds:.3g} ms)\n"
        for batch in batches
        for rule in batch.rules
        if rule.model is not None and rule.model.advice is not None
    ]
    return "What the cost model recommends\n\n" + "".join(lines) if lines else ""


def _profile(rule: RuleFigures) -> list[list[str]]:
    cells = [["part", "ms", "of a cycle", "floor, ms", "x floor"]]
    for part in rule.profile:
        floor, times = part.floor_seconds, part.x_floor
        above = ["none defined", ""]
        if floor is not None and times is not None:
            above = [f"{1e3 * floor:.3g}", f"{times:.1f}" if times < 1e4 else "over 10,000"]
        cells.append([part.part, milliseconds(part), f"{100 * part.share:.0f} %", *above])
    return cells


def _of(figure: float | None, scale: float, form: str, unit: str = "") -> str:
    """A figure in other units; "" where there is none."""
    return "" if figure is None else f"{scale * figure:{form}}{unit}"


def spread_of(found: Spread, name: str, form: str) -> str:
    """What `timing.spread` made, as `median (low to high)`."""
    return ranged(getattr(found, name), (found.low, found.high), form)


def milliseconds(found: Seconds) -> str:
    """A timing in ms, with its range."""
    return ranged(1e3 * found.seconds, (1e3 * found.low, 1e3 * found.high), ".3g")


def title(rule: RuleFigures | SweepRow | CellRecord) -> str:
    """A rule and its draft length."""
    return "plain" if rule.rule == "none" else f"{rule.rule} @ {rule.draft_length}"


def _count(parameters: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.2f}{letter}"
    return str(parameters)

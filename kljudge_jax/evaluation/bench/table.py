"""A bench as Markdown: what it was measured on, the parts of a cycle, the rules, and where a cycle goes."""

from __future__ import annotations

from typing import Any

from kljudge_jax.evaluation.demo import markdown
from kljudge_jax.machine import is_busy


def bench_markdown(found: dict[str, Any], profile: bool = False) -> str:
    """The document that `kljudge bench` writes, as Markdown."""
    blocks = [_setting(found), _busy(found), _limits(found)]
    for batch in found["batches"]:
        blocks += [f"Batch {batch['batch']}: parts of a cycle\n", markdown(_parts(batch))]
    blocks += ["Rules\n", markdown(_rules(found["batches"])), _advice(found["batches"])]
    if profile:
        for batch in found["batches"]:
            for rule in batch["rules"]:
                title = f"Batch {batch['batch']}, {_title(rule)}: where a cycle goes\n"
                blocks += [title, markdown(_profile(rule))]
    return "\n".join(block for block in blocks if block)


def machine_label(machine: dict[str, Any]) -> str:
    """The device in a few words."""
    many = f"{machine['devices']} x " if machine["devices"] > 1 else ""
    if machine["backend"] == "cpu":
        return f"{many}{machine['processor']}, {machine['cores']} cores"
    return f"{many}{machine['device']}"


def _setting(found) -> str:
    machine, plan = found["machine"], found["plan"]
    models = "; ".join(
        f"{name} {model['name']}, {_count(model['parameters'])} parameters" for name, model in found["models"].items()
    )
    memory = found["peak_memory"]
    return (
        f"{models}; {found['dtype']}. {machine_label(machine)}, jax {machine['versions']['jax']}, {machine['date']}. "
        f"Median (10 to 90 %) of {plan['rounds']} rounds, all measurements taking turns. "
        f"Peak memory ({memory['of']}): {memory['bytes'] / 1e9:.2f} GB. Programs found compiled on disk: "
        f"{found['found_compiled']}.\n"
    )


def _busy(found) -> str:
    """A warning where others were at work as well."""
    loads, cores = found["load_average"], found["machine"]["cores"]
    if not is_busy(loads, cores):
        return ""
    load = max(load for load in loads if load is not None)
    return (
        f"The machine was busy (load average {load:.0f} on {cores} cores): times are rough, and ratios hold better.\n"
    )


def _limits(found) -> str:
    limits = found["limits"]
    reads = ", ".join(
        f"{read['bytes_per_second'] / 1e9:.1f} GB/s over the {read['bytes'] / 1e6:.1f} MB of the {name}"
        for name, read in limits["read"].items()
    )
    product = limits["matmul"]
    return (
        f"What this device reached in the same run: a plain read {reads}; a square product of {product['size']} "
        f"{product['flops_per_second'] / 1e9:.0f} GFLOP/s. Shares below are of these.\n"
    )


def _parts(batch) -> list[list[str]]:
    head = ["part", "ms", "times a plain pass", "GB/s", "share", "GFLOP/s", "share"]
    plain = batch["target_pass"]["1"]["seconds"]
    cells = [head]

    def line(name, timing):
        known = "bytes_per_second" in timing
        cells.append(
            [
                name,
                milliseconds(timing),
                f"{timing['seconds'] / plain:.2f}",
                f"{timing['bytes_per_second'] / 1e9:.1f}" if known else "",
                f"{100 * timing['bandwidth_share']:.0f} %" if known else "",
                f"{timing['flops_per_second'] / 1e9:.1f}" if known else "",
                f"{100 * timing['flops_share']:.0f} %" if known else "",
            ]
        )

    if batch["draft"]:
        line("draft", batch["draft"])
        line("draft step", batch["draft"]["step"])
    for width, timing in batch["target_pass"].items():
        line(f"target pass, {width} position{'' if width == '1' else 's'}", timing)
    line(f"prompts ({batch['prompts']['tokens']} tokens)", batch["prompts"])
    return cells


def _rules(batches) -> list[list[str]]:
    head = [
        "batch",
        "rule",
        "tokens/s",
        "speedup",
        "mean acceptance length",
        "verdicts + commit, ms",
        "cycle, ms",
        "/ sum of parts",
        "decoding, tokens/s",
        "cost model",
        "error",
        "compile, s",
    ]
    cells = [head]
    for batch in batches:
        for rule in batch["rules"]:
            model = rule["model"]
            seconds = {part["part"]: part["seconds"] for part in rule["profile"]}
            cells.append(
                [
                    str(batch["batch"]),
                    _title(rule),
                    ranged(rule, "tokens_per_second", ".1f"),
                    ranged(rule["speed"], "ratio", ".2f") if rule["speed"] else "",
                    f"{rule['mean_acceptance_length']:.2f}",
                    f"{1e3 * (seconds['verdicts'] + seconds['commit']):.3g}",
                    milliseconds(rule["cycle"]),
                    f"{rule['cycle_over_parts']['ratio']:.2f}",
                    f"{rule['decoding']['tokens_per_second']:.1f}",
                    f"{model['tokens_per_second']:.1f}" if model else "",
                    f"{100 * model['error']:+.0f} %" if model else "",
                    f"{rule['compile_seconds']:.1f}",
                ]
            )
    return cells


def _advice(batches) -> str:
    lines = [
        f"- batch {batch['batch']}, {rule['rule']}: {rule['model']['advice']} (acceptance rate "
        f"{rule['model']['acceptance_rate']:.2f}, draft step {1e3 * rule['model']['draft_step_seconds']:.3g} ms, pass "
        f"with verdicts {1e3 * rule['model']['pass_seconds']:.3g} ms)\n"
        for batch in batches
        for rule in batch["rules"]
        if "advice" in (rule["model"] or {})
    ]
    return "What the cost model recommends\n\n" + "".join(lines) if lines else ""


def _profile(rule) -> list[list[str]]:
    cells = [["part", "ms", "of a cycle", "floor, ms", "x floor"]]
    for part in rule["profile"]:
        floor = part["floor_seconds"]
        cells.append(
            [
                part["part"],
                milliseconds(part),
                f"{100 * part['share']:.0f} %",
                "none defined" if floor is None else f"{1e3 * floor:.3g}",
                "" if floor is None else f"{part['x_floor']:.1f}" if part["x_floor"] < 1e4 else "over 10,000",
            ]
        )
    return cells


def ranged(found: dict[str, float], name: str, form: str) -> str:
    """`median (low to high)`."""
    return f"{found[name]:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def milliseconds(found: dict[str, float]) -> str:
    """A timing in ms, with its range."""
    middle, low, high = (1e3 * found[name] for name in ("seconds", "low", "high"))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _title(rule) -> str:
    return "plain" if rule["rule"] == "none" else f"{rule['rule']} @ {rule['draft_length']}"


def _count(parameters: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.2f}{letter}"
    return str(parameters)

"""Where the time of a decoding cycle goes: `python examples/profile_cycle.py PICTURE.png`.

The compiled cycle names its operations by four scopes, `draft`, `score`, `verify` and `commit`, which any profiler of
JAX shows. Here JAX's own trace is taken of a few cycles of the embedded pair, and drawn.
"""

from __future__ import annotations

import collections
import glob
import gzip
import json
import re
import sys
import tempfile

import jax
import numpy as np

import kljudge_jax as kj
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.generation import programs
from kljudge_jax.generation.run import Run

SCOPES = ("draft", "score", "verify", "commit")
# Operations whose time is that of what they hold.
_HOLDERS = re.compile(r"^(while|call|conditional)")


def profile(pair: kj.ModelPair, prompts: list[str], verifier: str, cycles: int = 4) -> list[tuple[float, float, str]]:
    """When each operation of some cycles began, how long it took, in milliseconds, and of which scope it is."""
    run = Run(pair, prompts, verifier, 8, kj.ModelDraft(), 128, Sampling.create(), (), None, False)
    rest = run.numbers(), np.zeros(len(prompts), bool), np.int32(cycles)
    lowered = programs.run_cycles.lower(*run.models, run.verifier, run.state, *rest, **run.static)
    text = lowered.compile().as_text() or ""
    scopes = {name: source for name, source in re.findall(r'%?([\w.\-]+) = .*?op_name="([^"]*)"', text)}
    state = programs.run_cycles(*run.models, run.verifier, run.state, *rest, **run.static)
    jax.block_until_ready(state.length)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            state = programs.run_cycles(*run.models, run.verifier, state, *rest, **run.static)
            jax.block_until_ready(state.length)
        (path,) = glob.glob(f"{folder}/plugins/profile/*/*.trace.json.gz")
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    found = []
    for event in events:
        name = event.get("args", {}).get("hlo_op", "")
        if event.get("ph") == "X" and name and not _HOLDERS.match(name):
            scope = next((scope for scope in SCOPES if f"/{scope}/" in scopes.get(name, "")), "")
            found.append((event["ts"] / 1000, event["dur"] / 1000, scope))
    return sorted(found)


def shares(operations: list[tuple[float, float, str]]) -> dict[str, float]:
    """Of the time of all operations, the part of each scope; "" is what has none."""
    total = collections.Counter()
    for _, took, scope in operations:
        total[scope] += took
    return {scope: total[scope] / sum(total.values()) for scope in (*SCOPES, "")}


def draw(operations: list[tuple[float, float, str]], title: str, path: str) -> None:
    """A line for each scope, a bar for each operation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    first, part = operations[0][0], shares(operations)
    for line, scope in enumerate(reversed(SCOPES)):
        bars = [(begun - first, took) for begun, took, of in operations if of == scope]
        axes.broken_barh(bars, (line - 0.4, 0.8), color=f"C{SCOPES.index(scope)}", linewidth=0)
    axes.set_yticks(range(len(SCOPES)), [f"{scope}, {part[scope]:.0%}" for scope in reversed(SCOPES)])
    axes.set_xlabel("milliseconds")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=130)


def main(path: str) -> None:
    pair = kj.ModelPair.embedded()
    prompts = [problem.prompt for problem in kj.load_task("arithmetic").problems(n=8)]
    operations = profile(pair, prompts, "kl:0.4")
    draw(operations, "Four cycles of the embedded pair, 8 answers, draft length 8, kl:0.4, on a CPU", path)
    print({scope or "no scope": f"{part:.1%}" for scope, part in shares(operations).items()})


if __name__ == "__main__":
    main(sys.argv[1])

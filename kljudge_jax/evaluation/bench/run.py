"""Speed alone: the parts of a cycle, whole answers, and what a cost model makes of them, in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kljudge_jax.evaluation.bench import limits
from kljudge_jax.evaluation.bench.batch import PLAIN, Batch, Plan
from kljudge_jax.evaluation.bench.figures import EMPTY_CALL, batch_figures
from kljudge_jax.evaluation.bench.records import KIND, SCHEMA, BenchFigures
from kljudge_jax.evaluation.bench.timing import SHORTEST_SAMPLE, measure
from kljudge_jax.generation.compile_clock import cache_hits
from kljudge_jax.machine import cores, describe_machine, is_busy, load_average, peak_memory
from kljudge_jax.models.draft_heads import HeadConfig
from kljudge_jax.models.leaves import arrays, dtype_of, head_kind, is_head, parameter_bytes
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.shapes import count_parameters
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.records import convert, plain

_SIZES = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size")

__all__ = ["KIND", "PLAIN", "SCHEMA", "Plan", "describe_model", "run_bench"]


def run_bench(
    pair: ModelPair, prompts: Sequence[Any], plan: Plan, task: str, command: str, report: Callable[[str], None]
) -> BenchFigures:
    """Measures what `plan` asks for, and returns the figures with what made them.

    Args:
      pair: the models.
      prompts: each as `generate` takes one; a batch that wants more of them gets some twice.
      plan: what to measure.
      task, command: what the prompts are of, and what was called.
      report: told of every compilation and every round.

    Raises:
      InputError: a rule, or a prompt, that cannot be.
    """
    known, load = cache_hits(), load_average()
    batches = [Batch(pair, prompts, plan, size) for size in plan.batches]
    draft = batches[0].draft
    models = {"target": pair.target} | ({} if draft is None else {"draft": draft})
    probes = {"square product": limits.matmul(dtype_of(pair.target)), EMPTY_CALL: limits.empty_call()}
    for name, model in models.items():
        for axis in (0, 1):
            probes[f"read of the {name}, axis {axis}"] = limits.read(model, axis)
    for batch in batches:
        probes |= batch.probes()
    timings = measure(probes, plan.rounds, shortest=SHORTEST_SAMPLE, report=report)

    loads = [load, load_average()]
    busy = is_busy(loads, cores())

    product = timings["square product"]
    reads = {name: [timings[f"read of the {name}, axis {axis}"] for axis in (0, 1)] for name in models}
    reached = {name: limits.reached(limits.weight_bytes(m), reads[name], product) for name, m in models.items()}
    figures = {
        "command": command,
        "machine": describe_machine(),
        "task": task,
        "models": {name: describe_model(model, getattr(pair, f"{name}_name")) for name, model in models.items()},
        "dtype": pair.precision,
        "plan": plan.to_json(),
        "limits": {
            "read": {
                name: {"bytes": limits.weight_bytes(model), "bytes_per_second": reached[name].bytes_per_second}
                | min(reads[name], key=lambda t: t.seconds).to_json()
                for name, model in models.items()
            },
            "matmul": {"size": limits.matmul_size(), "flops_per_second": reached["target"].flops_per_second}
            | product.to_json(),
            "empty_call": timings[EMPTY_CALL].to_json(),
        },
        "batches": [batch_figures(batch, timings, reached, busy) for batch in batches],
        "found_compiled": cache_hits() - known,
        "peak_memory": peak_memory(),
        "load_average": loads,
    }
    return convert(plain(figures), BenchFigures, "the bench")


def describe_model(model: Any, name: str) -> dict[str, Any]:
    """Name, shape and size of a model or a head; of another's what its protocol and its leaves say."""
    if is_head(model):
        head = model.config
        own = {key: getattr(head, key) for key in ("target_size", "draft_vocab", "block_size") if hasattr(head, key)}
        counted = isinstance(head, HeadConfig)  # a quantized one has numbers that are no parameters
        return {
            "name": name,
            "family": head_kind(model),
            "shape": {key: getattr(head.decoder, key) for key in _SIZES} | own | {"layers": list(head.layers)},
            "parameters": count_parameters(head) if counted else sum(leaf.size for leaf in arrays(model)),
            "bytes": parameter_bytes(model),
        }
    if not isinstance(model, Transformer):
        told = ((key, getattr(model, key, None)) for key in ("num_layers", "vocab_size"))
        return {
            "name": name,
            "family": type(model).__name__,
            "shape": {key: value for key, value in told if value is not None},
            "parameters": sum(leaf.size for leaf in arrays(model)),
            "bytes": parameter_bytes(model),
        }
    config, rows = model.config, model.storage.head_rows
    numbers = count_parameters(config)
    if rows is not None:
        numbers += (rows - (0 if config.tied_head else config.vocab_size)) * config.hidden_size
    return {
        "name": name,
        "family": config.family,
        "shape": {key: getattr(config, key) for key in _SIZES} | ({} if rows is None else {"head_rows": rows}),
        "parameters": numbers,
        "bytes": parameter_bytes(model),
    }

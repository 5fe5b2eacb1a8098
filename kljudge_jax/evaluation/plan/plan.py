"""What a pair takes of a slice of chips, as the chips' own compiler says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.plan.hlo import Program
from kljudge_jax.evaluation.plan.programs import KINDS, Compiled, abstract_pair, compiled_programs
from kljudge_jax.generation.arguments import drafter_for
from kljudge_jax.generation.config import DecodingConfig, DecodingFields, configured
from kljudge_jax.generation.costs import bytes_read, drafter_reads
from kljudge_jax.generation.memory_plan import (
    DEVICES,
    Model,
    Workload,
    check_fits,
    largest_batch,
    plan_memory,
    usual_prompt,
)
from kljudge_jax.generation.score import PREFILL_CHUNK
from kljudge_jax.kernels.quantize import stored_bits
from kljudge_jax.models.cache import Positions
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.draft_vocab import DraftVocab
from kljudge_jax.models.leaves import head_tokens, parameter_bytes
from kljudge_jax.models.named_config import named_pair
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.weights import resolve_dtype
from kljudge_jax.parallel.free_memory import USABLE
from kljudge_jax.parallel.placement import Placement, warn_uneven_batch
from kljudge_jax.parallel.topology import larger_than, topology_devices
from kljudge_jax.text_table import markdown
from kljudge_jax.verification.base import Verifier

_MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """What one program takes of each device, as its compiler says. Bytes, but for `seconds` and counts.

    Attributes:
      name: "prefill", "cycle" or "refill", and for how many slots of cache.
      arguments: weights, state and what else is given.
      temporaries: what lives while it runs.
      code: the program itself, which lies in the same memory.
      not_donated: results that do not take the place of an argument.
      seconds: that compiling took here.
      read, written: HBM traffic; of cycles, in one cycle. Loops whose turns depend on data count once.
      context: slots of a row that are taken to be written, where a kernel reads no others of its caches; else None.
      cache_read: of `read`, what such kernels read of caches.
      floor: what a cycle reads at least: the target's weights once, the draft's K times (of a head its layer and its
        rows, and what joins the target's states once), caches once, of those that a kernel reads what is written; else
        None.
      collectives: how many of each kind, and their bytes.
      copies: arrays above a megabyte that are copied or transposed.
      cycles: the compiler's own estimate of clock cycles, where it gives one; collectives and kernels are not in it.
    """

    name: str
    arguments: int
    temporaries: int
    code: int
    not_donated: int
    seconds: float
    read: int
    written: int
    floor: int | None
    collectives: dict[str, tuple[int, int]]
    copies: int
    cycles: int
    context: int | None = None
    cache_read: int = 0

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.code + self.not_donated

    @property
    def moved(self) -> int:
        """Bytes that pass between HBM and the chip."""
        return self.read + self.written


@dataclasses.dataclass(frozen=True)
class TopologyPlan:
    """A run on devices that need not be here.

    Attributes:
      topology: the devices, as in "v5e:2x4".
      mesh: how the models are spread over them; None is one device.
      config: how answers are decoded.
      prompt_tokens: of the longest prompt.
      weights: bytes of target and draft on each device.
      head_rows: how many tokens the draft's head is cut to, or a head drafts, of how many; None where it is all.
      caches: bytes of both models' caches on each device.
      worked_out: bytes on each device as `memory_plan` works them out without a compiler.
      programs: what the compiler says of each program.
      limit: bytes that may be used of each device.
      largest: the largest batch that fits, by estimate: worked out, with what the compiler adds to this one.
    """

    topology: str
    mesh: str | None
    config: DecodingConfig
    prompt_tokens: int
    weights: dict[str, int]
    caches: int
    worked_out: int
    programs: tuple[ProgramPlan, ...]
    limit: float
    largest: int
    head_rows: tuple[int, int] | None = None

    @property
    def total(self) -> int:
        """Bytes on each device: the largest program, with the code of the others, which stay loaded."""
        code = sum(program.code for program in self.programs)
        return max(program.total - program.code for program in self.programs) + code

    @property
    def fits(self) -> bool:
        return self.total <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON; bytes are bytes."""
        found = dataclasses.asdict(self) | {"config": self.config.to_json(), "schema": 1}
        return found | {"total": self.total, "fits": self.fits}

    def __str__(self) -> str:
        rows = [["", "arguments", "temporaries", "code", "HBM traffic", "floor", "traffic / floor", "collectives"]]
        clocked = any(program.cycles for program in self.programs)
        rows[0] += ["estimated cycles"] * clocked
        for program in self.programs:
            floor = program.floor
            exchanged = ", ".join(
                f"{count} {kind} ({_size(moved)})" for kind, (count, moved) in program.collectives.items()
            )
            rows.append(
                [
                    program.name,
                    *map(_size, (program.arguments, program.temporaries, program.code)),
                    _moved(program),
                    _size(floor) if floor else "",
                    f"{program.moved / floor:.2f}" if floor else "",
                    exchanged or "none",
                    *[f"{program.cycles / 1e6:.1f} M"] * clocked,
                ]
            )
        verdict = "fits" if self.fits else f"does not fit: {_size(self.total - self.limit)} are missing"
        batch = f"the largest batch that fits is {self.largest} by estimate" if self.largest else "no batch fits"
        weights = ", ".join(f"{whose} {_size(count)}" for whose, count in self.weights.items())
        if self.head_rows is not None:
            weights += " with {:,} of {:,} tokens".format(*self.head_rows)
        return (
            f"each device of {self.topology}, mesh {self.mesh or 'none'}: weights {weights}; "
            f"caches {_size(self.caches)}\n\n{markdown(rows)}\n"
            f"a batch of {self.config.batch} takes {_size(self.total)} of {_size(self.limit)} "
            f"({USABLE:.0%} of a device's memory) and {verdict}; {batch}\n"
            f"worked out without the compiler: {_size(self.worked_out)}\n"
        )


def plan(
    target: str | Path,
    draft: str | Path | None = None,
    *,
    topology: str,
    mesh: str | None = None,
    axes: str | None = None,
    draft_axes: str | None = None,
    dtype: str = "bfloat16",
    bits: int | None = None,
    draft_bits: int | None = None,
    cache_bits: int | None = None,
    draft_vocab: DraftVocab | int | None = None,
    verifier: Verifier | str | None = "kl:0.4",
    prompt_tokens: int | None = None,
    context: int | None = None,
    kinds: Collection[str] = KINDS,
    config: DecodingConfig | None = None,
    report: Callable[[str], None] | None = None,
    **fields: Unpack[DecodingFields],
) -> TopologyPlan:
    """Compiles the programs of a run for devices that need not be here, and says what the compiler says.

    Nothing is executed, and no weight is read. It says no time: that is not known before a program runs.

    Args:
      target: a published shape such as "llama-3.1-8b", a hub id, a folder, a .gguf file, or "embedded";
        `llama-3.1-8b:layers=4` is the first layers of a shape.
      draft: the same of the draft, the folder of a head, or the shape of one, such as "eagle3:vocab=32000", of the
        target's sizes; None is plain decoding.
      topology: the devices, such as "v5e:2x4".
      mesh: how models are spread over them, such as "data=2,tensor=4"; None is all of them on "tensor".
      axes: changes to the table of logical axes, for the target.
      draft_axes: the same for the draft; "target" is `axes`, and None that or "replicated", by what takes less time.
      dtype: of weights and caches.
      bits: of the target's matrices, 8 or 4; None keeps them in `dtype`.
      draft_bits: the same of the draft.
      cache_bits: 8, for a quantized KV cache.
      draft_vocab: the tokens that the draft's head is cut to, as `ModelPair.from_pretrained` takes them, or how many.
      verifier: the rule; without a draft there is none.
      prompt_tokens: of the longest prompt; None is 512, or what the models take beside the answer where that is less.
      context: tokens of a row that are taken to be in its caches when traffic is counted, where attention reads those
        and no more: on GPUs, and on TPUs from 4,096 slots on. None is the prompt and half an answer.
      kinds: which programs: "prefill", "cycle" and "refill".
      config: how answers are decoded; `batch` of them side by side.
      report: is told each program's name before it compiles.
      **fields: of `DecodingConfig`, in place of those of `config`.

    Raises:
      InputError: no such model, topology, mesh, dtype or bits; more tokens than the models take; models that do not
        fit the devices, with what is missing and what would do; or the compiler is not installed.
    """
    settings = configured("plan", config, fields)
    batch = settings.batch or 1
    needs_draft = getattr(settings.drafter, "uses_draft_model", True)
    if draft is None and needs_draft and (draft_axes, draft_bits, draft_vocab) != (None, None, None):
        raise InputError("draft_axes, draft_bits and draft_vocab are of a draft, and there is none: name it")
    _check(kinds, (bits, draft_bits), cache_bits, 1 if prompt_tokens is None else prompt_tokens)
    configs = named_pair(target, draft if needs_draft else None)
    if prompt_tokens is None:
        prompt_tokens = usual_prompt(_most_tokens(configs), settings.max_new_tokens)
    tokens = prompt_tokens + settings.max_new_tokens
    if tokens > _most_tokens(configs):
        raise InputError(f"prompt_tokens and max_new_tokens make {tokens}, and the models take {_most_tokens(configs)}")
    if context is None:
        context = prompt_tokens + settings.max_new_tokens // 2
    if not 1 <= context <= tokens:
        raise InputError(f"context is of 1 to {tokens} tokens, those of the prompt and the answer, and not {context}")
    devices = topology_devices(topology)
    if mesh is None and len(devices) > 1:
        mesh = f"tensor={len(devices)}"
    placement = Placement.parse(mesh, axes, draft_axes, devices=devices)
    kept = {"dtype": resolve_dtype(dtype), "bits": bits, "draft_bits": draft_bits, "cache_bits": cache_bits}
    kept["draft_vocab"] = draft_vocab
    pair = abstract_pair(*configs, placement, devices, **kept)
    rule = None if draft is None and needs_draft else verifier
    length = 0 if rule is None else settings.longest
    models = Model.of(pair.target), None if pair.draft is None else Model.of(pair.draft)
    workload = Workload(batch, prompt_tokens, settings.max_new_tokens, length, not settings.greedy)
    limit = USABLE * DEVICES[topology.strip().lower().partition(":")[0]]
    bigger = larger_than(topology, plan_memory(*models, workload).total / limit)
    larger = "spread them over more hosts" if bigger is None else f"take a larger slice, such as {bigger}"
    check_fits(*models, workload, limit, larger=larger)  # before minutes go into compiling what cannot be loaded
    if pair.target.layout is not None:
        warn_uneven_batch(pair.target.layout, batch)
    drafter = None if rule is None else drafter_for(pair, settings.drafter)
    found, state = [], None
    for program in compiled_programs(pair, rule, settings, prompt_tokens, kinds, report):
        found.append(_read(program, pair, drafter, length, context))
        state, workload = program.state, dataclasses.replace(workload, drafts=program.drafts)
    assert state is not None
    worked_out = plan_memory(*models, workload).total
    rows = None if pair.draft is None else head_tokens(pair.draft)
    sizes = {"target": _bytes(pair.target)} | ({} if pair.draft is None else {"draft": _bytes(pair.draft)})
    made = TopologyPlan(
        topology,
        mesh,
        settings,
        prompt_tokens,
        sizes,
        _bytes((state.cache, state.drafter)),
        worked_out,
        tuple(found),
        limit,
        0,
        None if rows is None else (rows, pair.target.vocab_size),
    )
    more = max(0, made.total - worked_out)
    return dataclasses.replace(made, largest=largest_batch(*models, workload, limit - more))


def _check(kinds: Collection[str], bits: Sequence[int | None], cache_bits: int | None, prompt_tokens: int) -> None:
    if not kinds or not set(kinds) <= set(KINDS):
        raise InputError(f"kinds are some of {', '.join(KINDS)}, not {', '.join(map(str, kinds)) or 'none'}")
    if not set(bits) <= {None, 8, 4} or cache_bits not in (None, 8):
        raise InputError("bits and draft_bits are 8 or 4, and cache_bits 8, or None")
    if prompt_tokens < 1:
        raise InputError(f"prompt_tokens starts at 1, got {prompt_tokens}")


def _most_tokens(configs) -> int:
    """What the models take; heads turn by rope."""
    return min(config.max_position for config in configs if isinstance(config, TransformerConfig))


def _read(program: Compiled, pair: ModelPair, drafter: Any, draft_length: int, context: int) -> ProgramPlan:
    memory: Any = program.executable.memory_analysis()
    is_cycle = program.name.startswith("cycle")
    text = Program(program.executable.as_text() or "", context)
    traffic = text.cycle() if is_cycle else text.traffic()
    held = context if traffic.blocks else None
    floor = None
    if is_cycle:
        floor = _share(pair.target) + _read_once((program.state.cache, program.state.drafter), held)
        if drafter is not None:
            floor += sum(times * _share(weights) for weights, times in drafter_reads(pair, drafter, draft_length))
    copies = traffic.copies + text.entry_copies()
    return ProgramPlan(
        name=program.name,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        not_donated=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        seconds=program.seconds,
        read=traffic.read,
        written=traffic.written,
        floor=floor,
        collectives={kind: (count, traffic.collective_bytes[kind]) for kind, count in traffic.collectives.items()},
        copies=sum(count for size, count in copies.items() if size > _MEGABYTE),
        cycles=traffic.cycles,
        context=held,
        cache_read=traffic.blocks,
    )


def _moved(program: ProgramPlan) -> str:
    """Its traffic, and of how much."""
    part = "" if program.name.startswith("cycle") else f" for {PREFILL_CHUNK} tokens of a prompt"
    return _size(program.moved) + part + (f" at {program.context} tokens" if program.context else "")


def _size(count: float) -> str:
    """Bytes in three digits."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e5 or not count else (1e3, "kB")
    return f"{count / unit:.3g} {name}" if count < 1e12 else f"{count / unit:.0f} {name}"


def _share(model: Any) -> int:
    """Bytes of weights that one device reads of a model, or of parts of one, for a token."""
    whole = parameter_bytes(model)
    return round(bytes_read(model) * _bytes(model) / whole) if whole else 0


def _read_once(tree: Any, context: int | None) -> int:
    """Bytes that one device reads of the caches and arrays of a state, at so many tokens a row; None is all slots."""

    def of(x: Any) -> int:
        if context is not None and isinstance(x, Positions) and not x.reads_all:
            return _bytes(x) * min(context, x.slots) // x.slots
        return _bytes(x)

    return sum(map(of, jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Positions))))


def _bytes(tree: Any) -> int:
    """What a tree of shapes takes of one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * stored_bits(x.dtype) // 8
        for x in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    )

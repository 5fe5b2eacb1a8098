"""The programs of a run, lowered for devices that need not be here, from shapes alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from kljudge_jax.core import rows
from kljudge_jax.core.loop import Entries
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.state import LoopState, Numbers
from kljudge_jax.generation import arguments, programs
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.generation.run_shape import RunShape
from kljudge_jax.generation.sections import reads_sections
from kljudge_jax.models.cache import Positions
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.draft_heads import HeadConfig, abstract_head
from kljudge_jax.models.draft_vocab import DraftVocab, check_draft_vocab, head_rows
from kljudge_jax.models.flat_model import flatten
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer, abstract, parameters
from kljudge_jax.parallel.axes import BATCH, VOCAB
from kljudge_jax.parallel.layout import Layout
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.verification import parse_verifier

KINDS = ("prefill", "cycle", "refill")


class Compiled(NamedTuple):
    """A program that was compiled.

    Attributes:
      name: "prefill", "cycle" or "refill", and for how many slots of cache.
      executable: what XLA made of it.
      seconds: that compiling took.
      state: the run's state, as shapes.
      drafts: rows that an answer takes.
    """

    name: str
    executable: jax.stages.Compiled
    seconds: float
    state: LoopState
    drafts: int


def abstract_model(config: TransformerConfig | HeadConfig, storage: Storage, device: jax.Device) -> Any:
    """A model or a head of that shape whose parameters are shapes that lie on the storage's mesh, or on a device."""
    model: Any = abstract_head(config, storage) if isinstance(config, HeadConfig) else abstract(config, storage)

    def placed(name, leaf):
        sharding = storage.sharding(name, leaf.shape) or SingleDeviceSharding(device)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    leaves = [placed(name, leaf) for name, leaf in parameters(model).items()]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def abstract_pair(
    target: TransformerConfig,
    draft: TransformerConfig | HeadConfig | None,
    placement: Placement,
    devices: Sequence[jax.Device],
    *,
    dtype: Any = jnp.bfloat16,
    bits: int | None = None,
    draft_bits: int | None = None,
    cache_bits: int | None = None,
    draft_vocab: DraftVocab | int | None = None,
) -> ModelPair:
    """A pair without weights, of configurations that share a vocabulary, as those of `named_pair` do.

    The draft's head is cut to the tokens of `draft_vocab`, or to so many.
    """
    platform = devices[0].platform
    check_draft_vocab(draft_vocab, draft)
    rows = head_rows(draft_vocab, target.vocab_size)

    def model(config, layout: Layout | None, rounded, rows=None):
        storage = Storage(dtype, rounded, layout, cache_bits=cache_bits, platform=platform, head_rows=rows)
        return abstract_model(config, storage, devices[0])

    return ModelPair(
        model(target, placement.target(target), bits),
        None if draft is None else model(draft, placement.draft(draft), draft_bits, rows),
        eos=(0,),
    )


def compiled_programs(
    pair: ModelPair,
    verifier: Any,
    config: DecodingConfig,
    prompt_tokens: int,
    kinds: Collection[str] = KINDS,
    report: Callable[[str], None] | None = None,
) -> Iterator[Compiled]:
    """The programs that a run compiles, one after another: prefill, cycles of each size of cache, refill.

    They are lowered from the very functions that a run calls, with the sizes that it would choose.

    Args:
      pair: models whose parameters are shapes with shardings.
      verifier: the rule, as `generate` takes it.
      config: how answers are decoded; `batch` rows side by side.
      prompt_tokens: of the longest prompt.
      kinds: which of them; a run whose prompts do not wait for a slot has no refill.
      report: is told each program's name before it compiles.
    """
    target: Transformer = pair.target
    layout, batch = target.layout, config.batch or 1
    sampling = Sampling.create(config.temperature, config.top_k, config.top_p, config.min_p)
    if layout is not None and layout.ways(VOCAB) > 1:
        sampling = sampling.over_split_vocabulary()
    verifier = parse_verifier(verifier, sampling.greedy) if isinstance(verifier, str) else verifier
    # Which tokens they are is data, and models that are shapes have no tokenizer to ask.
    named = reads_sections(verifier) if config.section_ids == "auto" else config.section_ids is not None
    plan = arguments.plan(pair, verifier, config.drafter, config.length, sampling, (0, 1) if named else None)
    tokens = prompt_tokens + config.max_new_tokens
    sizes = RunShape.of(target, plan, batch, prompt_tokens, config.max_new_tokens, tokens)
    whole = jax.tree.leaves(target)[0].sharding if layout is None else NamedSharding(layout.mesh, PartitionSpec())

    def shaped(x):
        x = jnp.asarray(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    def integers(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=whole)
    models = flatten(target), flatten(plan.draft)
    rule = jax.tree.map(shaped, plan.verifier)
    sections = None if plan.sections is None else jnp.asarray(plan.sections, jnp.int32)
    numbers = Numbers(sampling, jnp.int32(0), jnp.zeros((len(pair.eos),), jnp.int32), sections)
    numbers = jax.tree.map(shaped, numbers)
    begun = dataclasses.replace(numbers, budget=integers(batch))
    static = {"drafter": plan.drafter, "shape": sizes.shape}
    prompts = integers(batch, sizes.width), integers(batch), keys

    def compiled(name, lowered, state):
        if report is not None:
            report(name)
        start = time.perf_counter()
        executable = lowered.compile()
        return Compiled(name, executable, time.perf_counter() - start, state, plan.scorer.drafts)

    first = sizes.slots(prompt_tokens)
    given = (*models, rule, *prompts, begun, integers())
    state = jax.eval_shape(lambda *given: programs.start(*given, slots=first, **static), *given)
    state = placed_state(state, pair, whole)
    if "prefill" in kinds:
        yield compiled(f"prefill@{first}", programs.start.lower(*given, slots=first, **static), state)
    for slots in sizes.buckets[sizes.buckets.index(first) :]:
        state = placed_state(jax.eval_shape(lambda state, slots=slots: rows.resized(state, slots), state), pair, whole)
        if "cycle" not in kinds:
            continue
        costs = None if plan.adaptive is None else shaped(jnp.zeros((sizes.shape.draft_length + 1,)))
        asked = state, dataclasses.replace(numbers, costs=costs), jax.ShapeDtypeStruct((batch,), bool, sharding=whole)
        lowered = programs.run_cycles.lower(*models, rule, *asked, integers(), integers(), **static)
        yield compiled(f"cycle@{slots}", lowered, state)
    if "refill" in kinds:
        placed = dict(zip(Entries._fields, (*prompts, integers(batch), integers(batch)), strict=True))
        entries = Entries(**cast(Any, placed))
        lowered = programs.refill.lower(*models, rule, state, entries, numbers, integers(), integers(), **static)
        yield compiled(f"refill@{slots}", lowered, state)


def placed_state(state: LoopState, pair: ModelPair, alone: jax.sharding.Sharding) -> LoopState:
    """A state of shapes that lie where `init` leaves a state's arrays; `alone` where there is no mesh."""

    def is_cache(x: Any) -> bool:
        return isinstance(x, Positions)

    def placed(x: Any) -> Any:
        layout = x.layout if is_cache(x) else pair.target.layout

        def leaf(y):
            if layout is None:
                sharding = alone
            elif is_cache(x) and y.ndim == 4:
                sharding = layout.attention_sharding(y.shape)
            else:
                sharding = layout.sharding((BATCH,) + (None,) * (y.ndim - 1), y.shape)
            return jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=sharding)

        return jax.tree.map(leaf, x)

    return jax.tree.map(placed, state, is_leaf=is_cache)

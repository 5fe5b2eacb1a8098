"""What a run will take of each device's memory, worked out from configurations before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError
from kljudge_jax.generation.score import PREFILL_CHUNK
from kljudge_jax.models.cache import cache_dtype
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.draft_heads import HeadConfig, decoder_of
from kljudge_jax.models.leaves import is_head
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.shapes import bytes_per_device
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.models.written_attention import kernel_of
from kljudge_jax.parallel.free_memory import usable_memory
from kljudge_jax.parallel.layout import Layout

# HBM of one device as JAX sees them, bytes: the vendors' data sheets.
DEVICES = {"v5e": 16e9, "v5p": 95e9, "v6e": 32e9, "h100": 80e9, "h200": 141e9}


def platform_of(device: str) -> str:
    """The platform of one of `DEVICES`: on it hangs how matrices are quantized."""
    return "tpu" if device.startswith("v") else "gpu"


# Tokens of the longest prompt, where nobody says.
USUAL_PROMPT = 512


def usual_prompt(most_tokens: int, max_new_tokens: int) -> int:
    """`USUAL_PROMPT`, or what models of that many tokens take beside the answer where that is less; at least 1."""
    return max(1, min(USUAL_PROMPT, most_tokens - max_new_tokens))


_SLOT_BUCKET = 64  # caches are allocated in steps of this many slots
_FLOAT32 = 4

_LARGER = "spread the models over more devices (--mesh tensor=N)"

# How many arrays of the size of the logits a cycle keeps at once: XLA's own plans have up to 2.5 under `kl`, and one
# or so more of processed logits when sampling, 3.7 with top-p.
_COPIES = 3


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is decoded.

    Attributes:
      batch: answers side by side, B.
      prompt_tokens: of the longest prompt.
      max_new_tokens: of an answer.
      draft_length: K; 0 without a draft.
      sampling: a temperature above 0, for which processed logits are kept beside the raw ones.
      drafts: rows that an answer takes, of caches and passes: as many as a rule has drafts.
      capacity: slots of a row's caches, where they are known.
    """

    batch: int = 8
    prompt_tokens: int = USUAL_PROMPT
    max_new_tokens: int = 256
    draft_length: int = 8
    sampling: bool = False
    drafts: int = 1
    capacity: int | None = None

    @property
    def rows(self) -> int:
        """Of caches and passes."""
        return self.batch * self.drafts

    @property
    def slots(self) -> int:
        """Slots of a row's caches, S."""
        if self.capacity is not None:
            return self.capacity
        tokens = self.prompt_tokens + self.max_new_tokens + self.draft_length + 1
        return -(-tokens // _SLOT_BUCKET) * _SLOT_BUCKET


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of a pair, or a head that drafts.

    Attributes:
      config: its shape, or a head's.
      layout: where it lies; None is one device.
      dtype: of its weights.
      cache_dtype: of its caches; None is the same.
      bits: of its matrices, as `linear.Storage` has it.
      cache_bits: of its caches, the same.
      platform: of its devices, on which it hangs how its matrices are quantized, as `linear.Storage` has it.
      head_rows: how many tokens its head knows, the same.
    """

    config: TransformerConfig | HeadConfig
    layout: Layout | None
    dtype: Any
    cache_dtype: Any = None
    bits: int | str | None = None
    cache_bits: int | None = None
    platform: str | None = None
    head_rows: int | None = None

    @property
    def decoder(self) -> TransformerConfig:
        """The shape of its layers."""
        return decoder_of(self.config)

    @classmethod
    def of(cls, model: Any) -> Model:
        """That of a `Transformer` or a head that is loaded."""
        kept = model.storage
        caches = cache_dtype(kept.dtype, kept.place.platform)
        placed = kept.layout, kept.dtype, caches, kept.bits, kept.cache_bits, kept.place.platform
        return cls(model.config, *placed, kept.head_rows)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one device.

    Attributes:
      target_weights, draft_weights: parameters.
      caches: keys and values of both models.
      prefill: what lives within a pass over a piece of the prompts: attention scores, the MLP's inner states, and the
        target's states that a head reads.
      cycle: the same of a pass over a draft, and the logits of K + 1 positions of the target and K of the draft,
        float32, as often as a rule keeps them.
    """

    target_weights: int
    draft_weights: int
    caches: int
    prefill: int
    cycle: int

    @property
    def total(self) -> int:
        held = self.target_weights + self.draft_weights + self.caches
        return held + max(self.prefill, self.cycle)


def plan_memory(target: Model, draft: Model | None, workload: Workload) -> MemoryPlan:
    """What a device will hold of both models and of what they work on."""
    caches, prefill, cycle = _decoding(target, draft, workload)
    weights = _weights(target), 0 if draft is None else _weights(draft)
    return MemoryPlan(*weights, caches, prefill, cycle)


def _decoding(target: Model, draft: Model | None, workload: Workload) -> tuple[int, int, int]:
    """Bytes of caches, of a prefill and of a cycle."""
    models = [target] if draft is None else [target, draft]
    length = workload.draft_length
    logits = _logits(target, workload.rows, length + 1) + _logits(models[-1], workload.rows, length)

    def working(width: int) -> int:
        states = 0 if draft is None else _states_read(draft, workload, width)
        return states + max(_working(model, workload, width) for model in models)

    return (
        sum(_cache(model, workload) for model in models),
        working(min(PREFILL_CHUNK, workload.prompt_tokens)),
        (_COPIES + workload.sampling) * logits + working(length + 1),
    )


def largest_batch(target: Model, draft: Model | None, workload: Workload, limit: float) -> int:
    """The most rows, a multiple of what the mesh splits them by, that fit in `limit` bytes a device; 0 if none do."""
    step = 1 if target.layout is None else target.layout.ways("batch")

    def fits(steps: int) -> bool:
        batch = dataclasses.replace(workload, batch=steps * step)
        return plan_memory(target, draft, batch).total <= limit

    high = 1
    while fits(high):
        high *= 2
    low = high // 2  # the most that is known to fit; the answer is below `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * step


def check_fits(
    target: Model,
    draft: Model | None,
    workload: Workload,
    free: float | None,
    at_least: bool = False,
    larger: str = _LARGER,
) -> None:
    """Raises InputError, with the numbers and the largest batch, where a plan does not fit in `free` bytes a device.

    `at_least` says that prompts are not known yet, and that the workload has the shortest there may be; `larger` says
    how to come by more memory.
    """
    if free is None:
        return
    plan = plan_memory(target, draft, workload)
    if plan.total <= free:
        return
    most = largest_batch(target, draft, workload, free)
    if most:
        remedy = f"a batch of {'at most ' * at_least}{most} fits"
    elif plan.target_weights + plan.draft_weights > free:
        narrower = "--dtype bfloat16, " if jnp.dtype(target.dtype).itemsize > 2 else ""
        remedy = f"{larger}, {narrower}--bits 8, or smaller models"
    else:
        remedy = f"shorten prompts or answers, or {larger}"
    held = plan.target_weights + plan.draft_weights
    states = plan.total - held - plan.caches
    prompts = "whatever the prompts" if at_least else f"with prompts of {workload.prompt_tokens} tokens"
    raise InputError(
        f"each device would hold {gigabytes(held)} of weights, "
        f"{gigabytes(plan.caches)} of caches and {gigabytes(states)} of logits and other states "
        f"at a batch of {workload.batch}, {prompts}, and has {gigabytes(free)} for them; "
        f"{gigabytes(plan.total - free)} are missing: {remedy}"
    )


def check_run_fits(target: Any, draft: Any, workload: Workload) -> None:
    """The same of models that are loaded, and of what their devices have left beside them."""
    if not isinstance(target, Transformer) or not (isinstance(draft, Transformer | None) or is_head(draft)):
        return  # of others nothing is known before they are compiled
    if jax.process_count() > 1:
        return  # each host sees its own memory, and one that refused alone would leave the others waiting
    layout = target.layout
    free = usable_memory(None if layout is None else layout.mesh)
    ours, theirs = Model.of(target), None if draft is None else Model.of(draft)
    plan = plan_memory(ours, theirs, workload)
    held = plan.target_weights + plan.draft_weights
    if free is not None and plan.total - held > free:
        check_fits(ours, theirs, workload, held + free)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _weights(model: Model) -> int:
    kept = Storage(model.dtype, model.bits, model.layout, platform=model.platform, head_rows=model.head_rows)
    return bytes_per_device(model.config, kept)


def _share(model: Model, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> int:
    """How many numbers of an array a device holds."""
    if model.layout is None:
        return math.prod(shape)
    return math.prod(model.layout.sharding(axes, shape).shard_shape(shape))


def _logits(model: Model, batch: int, positions: int) -> int:
    axes, shape = ("batch", None, "vocab"), (batch, positions, model.decoder.vocab_size)
    return _FLOAT32 * _share(model, axes, shape)


def _cache(model: Model, workload: Workload) -> int:
    config = model.decoder

    def side(size: int) -> int:
        return _attention_share(model, (workload.rows, config.num_kv_heads, workload.slots, size))

    if model.cache_bits is not None:
        return 2 * config.num_layers * (side(config.head_dim) + _FLOAT32 * side(1))
    return 2 * config.num_layers * jnp.dtype(model.cache_dtype or model.dtype).itemsize * side(config.head_dim)


def _attention_share(model: Model, shape: tuple[int, ...]) -> int:
    return math.prod(shape if model.layout is None else model.layout.attention_sharding(shape).shard_shape(shape))


def _scores(model: Model, workload: Workload, width: int) -> tuple[int, ...]:
    heads, groups = model.decoder.num_heads, model.decoder.num_kv_heads
    return workload.rows, groups, heads // groups, width, workload.slots


def _by_blocks(model: Model, workload: Workload, width: int) -> bool:
    """Whether attention over so many tokens a row takes its cache in blocks, whose scores do not leave a core."""
    config, platform = model.decoder, model.platform
    if platform is None and model.layout is not None:
        platform = model.layout.platform
    dtype = jnp.dtype(jnp.int8 if model.cache_bits is not None else model.cache_dtype or model.dtype)
    keys = jax.ShapeDtypeStruct((workload.rows, config.num_kv_heads, workload.slots, config.head_dim), dtype)
    query = workload.rows, width, config.num_heads, config.head_dim
    return platform is not None and kernel_of(query, keys, model.dtype, model.layout, platform) is not None


def _working(model: Model, workload: Workload, width: int) -> int:
    """Of a pass over so many tokens a row: scores and their softmax, and the MLP's two products."""
    config, batch = model.decoder, workload.rows
    size = jnp.dtype(model.dtype).itemsize
    scores = 0 if _by_blocks(model, workload, width) else _attention_share(model, _scores(model, workload, width))
    inner = _share(model, ("batch", None, "mlp"), (batch, width, config.intermediate_size))
    states = _share(model, ("batch", None, None), (batch, width, config.hidden_size))
    return max((_FLOAT32 + size) * scores, (2 * size + _FLOAT32) * inner) + 4 * size * states


def _states_read(draft: Model, workload: Workload, width: int) -> int:
    """Of the target's states that a head reads in a pass over so many tokens a row: each layer's, and all side by
    side."""
    layers = getattr(draft.config, "layers", ())
    size = getattr(draft.config, "target_size", draft.decoder.hidden_size)
    each = _share(draft, ("batch", None, None), (workload.rows, width, size))
    return 2 * len(layers) * jnp.dtype(draft.dtype).itemsize * each

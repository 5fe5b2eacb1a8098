"""Whether a draft is quicker split over the devices of a mesh, or whole on each of them.

Split, a device reads a part of its weights for a draft token, and the devices exchange sums twice a layer. Whole, it
reads all of them and exchanges nothing. Small drafts are quicker whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import Mesh

from kljudge_jax.parallel.axes import EMBED, HEADS, MLP, VOCAB
from kljudge_jax.parallel.layout import Layout

# Bytes a second that a device reads of its memory, by what its kind is called in: the vendors' data sheets.
_BANDWIDTH = {
    "v5 lite": 819e9,
    "v6 lite": 1640e9,
    "v5": 2765e9,
    "v4": 1228e9,
    "A100": 2039e9,
    "H100": 3352e9,
    "H200": 4800e9,
    "B200": 8000e9,
}
_OTHERWISE = 1000e9

# Seconds that devices take to exchange a few kilobytes: an assumption, of the size that ICI and NVLink are known for.
_EXCHANGE = 5e-6

_BYTES = 2  # of a weight in bfloat16


class DraftPlacement(NamedTuple):
    """Where a draft is quicker.

    Attributes:
      whole: on each device, all of it.
      reason: the two estimates, in a sentence.
    """

    whole: bool
    reason: str


def draft_placement(split: Layout, config: Any) -> DraftPlacement:
    """Estimates a draft token of a model or a head of that configuration, split as in a layout and whole.

    On a CPU, and on a mesh without devices, it stays split: how fast devices read and exchange is not known there. It
    does so too where weights are split by hidden size ("fsdp"), to be gathered when they are used.
    """
    ways = {axis: split.ways(axis) for axis in (HEADS, MLP, VOCAB)}
    if split.platform in (None, "cpu") or max(ways.values()) == 1 or split.ways(EMBED) > 1:
        return DraftPlacement(False, "the draft lies as the target does")
    # A head has rows for a part of the vocabulary, and reads an embedding beside each state.
    rows = getattr(config, "draft_vocab", None)
    config = getattr(config, "decoder", config)
    rows, beside = (config.vocab_size, 0) if rows is None else (rows, config.hidden_size)
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = 2 * hidden * config.head_dim * (config.num_heads + config.num_kv_heads)
    attention += beside * config.head_dim * (config.num_heads + 2 * config.num_kv_heads)
    per_layer = _BYTES * (attention / ways[HEADS] + 3 * hidden * inner / ways[MLP])
    head = _BYTES * hidden * rows
    read = config.num_layers * per_layer + head / ways[VOCAB]
    whole = config.num_layers * _BYTES * (attention + 3 * hidden * inner) + head
    # Of the sums behind attention and MLP, and of the vocabulary's: embedding, maximum and index.
    exchanges = config.num_layers * ((ways[HEADS] > 1) + (ways[MLP] > 1)) + 3 * (ways[VOCAB] > 1)
    bandwidth = _bandwidth(split.mesh)
    split_ms, whole_ms = 1e3 * (read / bandwidth + exchanges * _EXCHANGE), 1e3 * whole / bandwidth
    verdict = "it is kept whole, unless the draft axes are 'target'" if whole_ms < split_ms else "it is split"
    return DraftPlacement(
        whole_ms < split_ms,
        f"by estimate a draft token takes {whole_ms:.2f} ms where each device has the draft whole ({whole / 1e6:.0f} "
        f"MB are read), and {split_ms:.2f} ms split as the target ({read / 1e6:.0f} MB and {exchanges} exchanges): "
        f"{verdict}",
    )


def _bandwidth(mesh: Any) -> float:
    kind = mesh.devices.flat[0].device_kind if isinstance(mesh, Mesh) else ""
    return next((speed for name, speed in _BANDWIDTH.items() if name.lower() in kind.lower()), _OTHERWISE)

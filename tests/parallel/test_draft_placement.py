"""Where a draft is quicker: whole on each device if it is small, split if it is not."""

import types

import numpy as np
import pytest
from jax.sharding import Mesh

from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.shapes import head_shape, shape_config
from kljudge_jax.parallel.axes import parse_axes
from kljudge_jax.parallel.draft_placement import draft_placement
from kljudge_jax.parallel.layout import Layout
from kljudge_jax.parallel.mesh import mesh_from_spec
from kljudge_jax.parallel.placement import Placement


class Chip(types.SimpleNamespace):
    """A device that is not here, as a mesh asks of it."""

    process_index = 0

    def __hash__(self):
        return self.id

    def __eq__(self, other):
        return self is other


def layout(shape, kind, platform="tpu", ways=4):
    chips = np.array([Chip(id=i, platform=platform, device_kind=kind) for i in range(ways)])
    return Layout.create(Mesh(chips, ("tensor.0",)), parse_axes(None), shape_config(shape)), shape_config(shape)


@pytest.mark.parametrize(
    ("shape", "kind", "whole"),
    [
        ("llama-3.2-1b", "TPU v5 lite", False),  # 2.5 GB at 819 GB/s, for 0.6 GB and 35 exchanges
        ("qwen3-0.6b", "TPU v5 lite", False),
        ("qwen3-0.6b", "NVIDIA H200", True),  # 1.2 GB at 4.8 TB/s, for 0.3 GB and 59 exchanges
        ("llama-3.2-1b", "NVIDIA H200", False),
    ],
)
def test_a_small_draft_is_quicker_whole(shape, kind, whole):
    found = draft_placement(*layout(shape, kind))
    assert found.whole is whole and ("kept whole" in found.reason) is whole


@pytest.mark.parametrize(("kind", "whole"), [("TPU v5 lite", False), ("NVIDIA H200", False)])
def test_a_heads_own_rows_and_its_wider_layer_count(kind, whole):
    split, config = layout("llama-3.1-8b", kind)
    found = draft_placement(split, head_shape("eagle3:vocab=32000", config))
    # A layer of 243M parameters, whose attention reads twice the hidden size, and 131M of output rows.
    assert "(749 MB are read)" in found.reason and "(187 MB and 5 exchanges)" in found.reason
    assert found.whole is whole


def test_what_is_not_known_is_left_as_it_is():
    assert not draft_placement(*layout("qwen3-0.6b", "NVIDIA H200", platform="cpu")).whole
    assert not draft_placement(*layout("qwen3-0.6b", "NVIDIA H200", ways=1)).whole


def test_axes_that_were_given_are_kept(monkeypatch, caplog):
    monkeypatch.setattr(Layout, "platform", "tpu")
    config = TransformerConfig("llama", 256, 64, 128, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16)
    placed = {axes: Placement.parse("tensor=2", None, axes).draft(config) for axes in ("target", "replicated", None)}
    assert placed["target"] == Layout.create(mesh_from_spec("tensor=2"), parse_axes(None), config)
    # Two exchanges a layer take longer than to read so little.
    assert placed[None] == placed["replicated"] != placed["target"]
    assert "it is kept whole, unless the draft axes are 'target'" in caplog.text

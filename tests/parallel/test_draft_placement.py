"""Where a draft is quicker: whole on each device if it is small, split if it is not."""

import types

import numpy as np
import pytest
from jax.sharding import Mesh

from kljudge_jax.models.shapes import shape_config
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
        ("llama-3.2-1b", "TPU v5 lite", False),  # 2.5 GB at 819 GB/s for 0.6 GB and 35 exchanges
        ("smollm2-135m", "TPU v5 lite", True),  # 0.3 GB for 0.1 GB and 63 exchanges
        ("llama-3.2-1b", "NVIDIA H200", False),
        ("qwen2.5-0.5b", "NVIDIA H200", True),  # 1 GB at 4.8 TB/s
    ],
)
def test_a_small_draft_is_quicker_whole(shape, kind, whole):
    found = draft_placement(*layout(shape, kind))
    assert found.whole is whole and ("kept whole" in found.reason) is whole


def test_what_is_not_known_is_left_as_it_is():
    assert not draft_placement(*layout("smollm2-135m", "cpu", platform="cpu")).whole
    assert not draft_placement(*layout("smollm2-135m", "TPU v5 lite", ways=1)).whole


def test_axes_that_were_given_are_kept(monkeypatch, caplog):
    monkeypatch.setattr(Layout, "platform", "tpu")
    config = shape_config("smollm2-135m:layers=2")
    placed = {axes: Placement.parse("tensor=2", None, axes).draft(config) for axes in (None, "target", "replicated")}
    split = Layout.create(mesh_from_spec("tensor=2"), parse_axes(None), config)
    assert placed["target"] == split
    # Chips of a kind that has no name in the table are taken for slow ones: few exchanges pay for what is read more.
    assert placed[None] in (split, placed["replicated"])
    assert (placed[None] == placed["replicated"]) == ("kept whole" in caplog.text)

"""Where the two models of a pair lie: one mesh, and for each model its own table of logical axes."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from kljudge_jax.errors import InputError
from kljudge_jax.parallel.axes import BATCH, REPLICATED, parse_axes
from kljudge_jax.parallel.draft_placement import draft_placement
from kljudge_jax.parallel.layout import Layout, undivided
from kljudge_jax.parallel.mesh import abstract_mesh, mesh_from_spec

_log = logging.getLogger(__name__)

# The spec of a draft that lies as the target does.
AS_TARGET = "target"


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, or None for one device, and the tables of target and draft.

    A draft whose table was not given lies as the target does, or whole on every device of the mesh where it then takes
    less time: see `draft_placement`.
    """

    mesh: Mesh | AbstractMesh | None
    target_rules: Mapping[str, tuple[str, ...]]
    draft_rules: Mapping[str, tuple[str, ...]]
    draft_given: bool = True

    @classmethod
    def parse(
        cls,
        mesh: str | None,
        axes: str | None = None,
        draft_axes: str | None = None,
        *,
        devices: bool | Sequence[jax.Device] = True,
    ) -> Placement:
        """From spec strings; without `draft_axes` the draft lies as the target does.

        Args:
          mesh: its sizes, as in "data=2,tensor=4"; None is one device.
          axes: changes to the target's table of logical axes.
          draft_axes: the same of the draft; "target" is the target's table, and None what takes less time.
          devices: of the mesh; True is those of this process, False none: enough to work out sizes.

        Raises:
          InputError: a spec that means nothing, more devices than there are, or tables without a mesh.
        """
        if mesh is None and (axes or draft_axes):
            raise InputError("axes say what lies where on a mesh: name one, such as data=2,tensor=4")
        target = parse_axes(axes, "axes")
        as_target = not draft_axes or draft_axes.strip() == AS_TARGET
        draft = target if as_target else parse_axes(draft_axes, "draft axes")
        if target["batch"] != draft["batch"]:
            raise InputError("target and draft decode the same rows: map batch alike in axes and draft axes")
        if mesh is None:
            return cls(None, target, draft, draft_axes is not None)
        if devices is False:
            return cls(abstract_mesh(mesh), target, draft, draft_axes is not None)
        return cls(mesh_from_spec(mesh, None if devices is True else devices), target, draft, draft_axes is not None)

    def target(self, config: Any) -> Layout | None:
        """The layout of a target of that configuration; None on one device. Says once what the mesh does not divide."""
        return self._layout(self.target_rules, config, "target")

    def draft(self, config: Any) -> Layout | None:
        """The same of a draft, a model or a head. Says once where it is kept whole though nobody asked for it."""
        split = self._layout(self.draft_rules, config, "draft")
        if self.draft_given or split is None:
            return split
        found = draft_placement(split, config)
        if not found.whole:
            return split
        _say(found.reason)
        return self._layout(parse_axes(REPLICATED) | {BATCH: self.draft_rules[BATCH]}, config, "draft")

    def _layout(self, rules: Mapping[str, tuple[str, ...]], config: Any, whose: str) -> Layout | None:
        if self.mesh is None:
            return None
        config = getattr(config, "decoder", config)  # a head's, of its layers
        layout = Layout.create(self.mesh, rules, config)
        for sentence in undivided(layout, rules, config, whose):
            _say(sentence)
        return layout


def warn_uneven_batch(layout: Layout, rows: int) -> None:
    """Says once that the mesh has more devices for the rows of a batch than it can divide them over."""
    asked, ways = layout.ways(BATCH), layout.row_ways(rows)
    if ways < asked:
        how = f"split {ways} ways and repeated" if ways > 1 else "decoded whole by each of them"
        _say(
            f"a batch of {rows} cannot be split over {asked} parts of the mesh: it is {how}, "
            f"and a multiple of {asked} keeps all of them busy"
        )


@functools.cache
def _say(sentence: str) -> None:
    """Once, however often a model of that shape is placed."""
    _log.warning("%s", sentence)

"""Tiny EAGLE-3 heads of tiny targets: random ones, and one that writes its target's last token again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny_pairs import VOCAB_SIZE, tiny_model

from kljudge_jax.models import eagle3
from kljudge_jax.models.eagle3 import Eagle3Head
from kljudge_jax.models.eagle3_files import described_for, write_eagle3
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import abstract, fill, parameters
from kljudge_jax.parallel.placement import Placement

LAYERS = (0, 1, 2)
# Tokens that it cannot draft lie between those that it can.
IDS = np.delete(np.arange(VOCAB_SIZE), np.s_[::5])


def echoing_head(target, ids=IDS, **changes):
    """A head whose states are the target's last ones: it drafts what the target has just written, over and over. Its
    other weights are random, and reach nothing but its cache."""
    config = dataclasses.replace(described_for(target.config, len(ids), layers=LAYERS), **changes)
    head = Eagle3Head(config, jax.random.key(3))
    values = {name: np.array(value) for name, value in parameters(head).items()}
    size = target.config.hidden_size
    values["fc.weight"] = np.concatenate([np.zeros((size, 2 * size)), np.eye(size)], axis=1, dtype=np.float32)
    for name in ("layers.0.attention.out.weight", "layers.0.mlp.down.weight"):
        values[name] = np.zeros_like(values[name])
    ours = parameters(target)
    values |= {
        "final_norm.scale": np.array(ours["final_norm.scale"]),
        "head.weight": np.array(ours["head.weight"])[ids],
        "ids": np.asarray(ids, np.int32),
    }
    return fill(head, {name: jnp.asarray(value) for name, value in values.items()})


def headed_pair(ids=IDS, eos=(999,), seed=0, **changes):
    """A tiny target and an echoing head."""
    target = tiny_model(seed)
    return ModelPair(target, echoing_head(target, ids, **changes), eos=eos, draft_name="a head")


def write_head(folder, target, ids=IDS):
    """An echoing head of the target as a folder in the public format."""
    head = echoing_head(target, ids)
    values = {name: np.asarray(value) for name, value in parameters(head).items() if name != "ids"}
    write_eagle3(folder, head.config, values, ids)
    return folder


def on_mesh(pair, mesh, draft_axes=None):
    """The pair as a loader places it."""
    placement = Placement.parse(mesh, None, draft_axes)

    def placed(model, layout, empty):
        storage = dataclasses.replace(model.storage, layout=layout, platform=None)
        values = {name: jax.device_put(x, storage.sharding(name, x.shape)) for name, x in parameters(model).items()}
        return fill(empty(model.config, storage), values)

    target = placed(pair.target, placement.target(pair.target.config), abstract)
    draft = placed(pair.draft, placement.draft(pair.draft.config), eagle3.abstract)
    return dataclasses.replace(pair, target=target, draft=draft)

"""EAGLE-3 heads as others publish and read them: config.json and safetensors with `fc`, `midlayer`, `d2t`, `t2d`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.models import names
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.eagle3 import Eagle3Config, Eagle3Head, abstract, default_layers
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import fill, parameters
from kljudge_jax.models.weights import SafetensorsFolder, faults_of, read_parameters
from kljudge_jax.records import named, write_text

_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
_MIDLAYER = re.compile(r"^(model\.)?(midlayer|layers\.0)\.")
_TABLES = ("d2t", "t2d")

# What some heads change in the forward pass, and the value that changes nothing; at the top or in eagle_config.
_CHANGES: dict[str, Any] = {
    "fc_norm": False,
    "norm_before_fc": False,
    "norm_output": False,
    "parallel_draft_step": 1,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
}


class Eagle3Folder(SafetensorsFolder):
    """A head's folder; no weight is read before `load`.

    Raises:
      InputError: it is broken, or no head that runs here.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        eagle = self.options.get("eagle_config") or {}
        if not isinstance(eagle, dict):
            raise InputError(f"{self.where}: eagle_config of config.json is no object: download the folder again")
        # At the top, where vLLM looks, a layer is counted as here; in eagle_config, where SGLang and SpecForge look, it
        # is the index of a block, after which its state stands.
        above, inside = (_layer_ids(options, self.where) for options in (self.options, eagle))
        after = None if inside is None else tuple(i + 1 for i in inside)
        if above is not None and after is not None and above != after:
            raise InputError(
                f"{self.where}: config.json names layers {list(above)} at its top, and blocks {list(inside or ())} in "
                "eagle_config, which are others: remove the wrong list"
            )
        if eagle.get("use_aux_hidden_state") is False:
            raise InputError(f"{self.where} reads the target's last states alone, as EAGLE-1: give an EAGLE-3 head")
        if self.config.num_layers != 1:
            raise InputError(f"{self.where} has {self.config.num_layers} layers: heads of one layer run here")
        given = [(name, part.get(name)) for part in (self.options, eagle) for name in _CHANGES]
        faults = [f"{name} {value!r}" for name, value in given if value is not None and value != _CHANGES[name]]
        before = self.options.get("norm_before_residual", False)
        if not isinstance(before, bool):
            faults.append(f"norm_before_residual {before!r}")
        if faults:
            raise InputError(f"{self.where}: config.json: {', '.join(faults)}: no such head runs here")
        self._before = before
        self.asked = above if after is None else after

    def _our_name(self, theirs: str) -> str | None:
        if theirs.removeprefix("model.") in _TABLES:
            return theirs.removeprefix("model.")
        if theirs.removeprefix("model.").startswith("fc."):
            return theirs.removeprefix("model.")
        name = _MIDLAYER.sub("layers.0.", theirs)
        if name == "layers.0.hidden_norm.weight":
            return "layers.0.hidden_norm.scale"
        return names.our_name(name, "llama", tied_head=False)

    def fitted(self, target: TransformerConfig) -> Eagle3Config:
        """Its shape, for a target of that one.

        Raises:
          InputError: it is no head of that target, or lacks tensors; all that is wrong is said.
        """
        own, found = self.config, self.shapes()
        faults = []
        layers = self.asked or default_layers(target.num_layers)
        if min(layers) < 0 or max(layers) > target.num_layers:
            faults.append(f"it reads layers {list(layers)}, and the target has {target.num_layers}")
        size = self.options.get("draft_vocab_size")
        draft_vocab = own.vocab_size if size is None else size
        if type(draft_vocab) is not int or not 1 <= draft_vocab <= own.vocab_size:
            raise InputError(
                f"{self.where}: draft_vocab_size of config.json is {size!r}, and its vocab_size {own.vocab_size}"
            )
        if own.vocab_size != target.vocab_size:
            faults.append(f"it was made for {own.vocab_size} tokens, and the target has {target.vocab_size}")
        fc = found.get("fc.weight", ())
        own_embedding = "embedding.table" in found
        if len(fc) == 2 and fc[1] != len(layers) * target.hidden_size:
            sizes = f"{len(layers)} states of {fc[1] / len(layers):g}"
            faults.append(f"its fc reads {sizes}, and the target's hidden size is {target.hidden_size}")
        elif not own_embedding and own.hidden_size != target.hidden_size:
            faults.append(
                f"it has no embeddings of its own and a hidden size of {own.hidden_size}, and the target's is "
                f"{target.hidden_size}"
            )
        wanted = self.options.get("target_hidden_size")
        if wanted not in (None, target.hidden_size):
            faults.append(f"it was made for a hidden size of {wanted}, and the target's is {target.hidden_size}")
        # Of what the file has for the target's sizes: those were compared above.
        width = fc[1] // len(layers) if len(fc) == 2 and fc[1] % len(layers) == 0 else target.hidden_size
        config = Eagle3Config(own, layers, width, draft_vocab, self._before, own_embedding)
        want = {name: leaf.shape for name, leaf in parameters(abstract(config)).items() if name != "ids"}
        faults += faults_of(want, {name: shape for name, shape in found.items() if name not in _TABLES})
        faults += self._faults_of_ids(config, found)
        if faults:
            raise InputError(f"{self.where} is no EAGLE-3 head of this target: {'; '.join(faults)}")
        return config

    def _faults_of_ids(self, config: Eagle3Config, found: dict[str, tuple[int, ...]]) -> list[str]:
        size, vocab = config.draft_vocab, config.decoder.vocab_size
        if "d2t" not in found:
            return [] if size == vocab else [f"d2t is missing, and it drafts {size} of {vocab} tokens"]
        if found["d2t"] != (size,):
            return [f"d2t is {list(found['d2t'])} instead of {[size]}"]
        if self._table("d2t").dtype.kind not in "iu":
            return [f"d2t is of {self._table('d2t').dtype} and names no tokens"]
        ids = self._ids(config)
        outside = int(np.sum((ids < 0) | (ids >= vocab)))
        if outside:
            return [f"d2t names {outside} tokens outside of {vocab}"]
        if len(np.unique(ids)) < size:
            return [f"d2t names {size - len(np.unique(ids))} tokens twice"]
        if "t2d" in found:
            table = self._table("t2d")
            if table.shape != (vocab,) or not np.array_equal(np.flatnonzero(table), np.sort(ids)):
                return ["t2d and d2t do not name the same tokens"]
        return []

    def _table(self, name: str) -> np.ndarray:
        file, theirs = self._tensors[name]
        return self._open(file).get_tensor(theirs)

    def _ids(self, config: Eagle3Config) -> np.ndarray:
        """The target's id of each row of the head, int64 `[Vd]`."""
        every = np.arange(config.draft_vocab)
        return every + self._table("d2t").astype(np.int64) if "d2t" in self._tensors else every

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        if name != "head.weight" or self._order is None:
            return super().read(name, part)
        array = super().read(name)[self._order]
        return array if part is None else array[part]

    _order: np.ndarray | None = None

    def load(self, config: Eagle3Config, storage: Storage) -> Eagle3Head:
        """The head, its rows in the order of the target's ids."""
        ids = self._ids(config)
        if np.any(np.diff(ids) < 0):
            self._order = np.argsort(ids)
            ids = ids[self._order]
        wanted = parameters(abstract(config, Storage(storage.dtype)))
        del wanted["ids"]
        values = read_parameters(self, wanted, storage)
        where = None if storage.layout is None else storage.layout.replicated()
        values["ids"] = jax.device_put(ids.astype(np.int32), where)
        return fill(abstract(config, storage), values)


def _layer_ids(options: dict[str, Any], where: str) -> tuple[int, ...] | None:
    """The list of layers of some part of a config.json, None if it has none."""
    layers = options.get(_LAYER_IDS)
    if layers is None:
        return None
    if not (isinstance(layers, list) and layers and all(type(i) is int and i >= 0 for i in layers)):
        raise InputError(f"{where}: {_LAYER_IDS} of config.json is no list of layers")
    return tuple(layers)


def check_writable(decoder: TransformerConfig) -> None:
    """Refuses a target whose head the public format has no words for."""
    if decoder.rope.scaling not in ("none", "llama3", "linear"):
        raise InputError(f"a rope of scaling {decoder.rope.scaling!r} cannot be written to an EAGLE-3 config.json")
    if decoder.rope.frequency_divisors is not None:
        raise InputError("a rope of divisors of its own cannot be written to an EAGLE-3 config.json")
    if decoder.final_softcap:
        raise InputError("a head of a target that caps its logits cannot be written to an EAGLE-3 config.json")


def write_eagle3(
    folder: str | Path,
    config: Eagle3Config,
    values: dict[str, np.ndarray],
    ids: Sequence[int],
    tokenizer: Any = None,
) -> None:
    """Writes a head in the public format.

    Args:
      folder: is made.
      config: the head's shape.
      values: its parameters by our dotted names, f32 or bfloat16, without `ids`.
      ids: the target's ids of the rows of `head.weight`, ascending.
      tokenizer: of the target, written beside it; None is none.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    decoder = config.decoder
    rows = np.asarray(ids, np.int64)
    known = np.zeros(decoder.vocab_size, bool)
    known[rows] = True
    tensors = {_their_name(name): np.ascontiguousarray(array) for name, array in values.items()}
    check_writable(decoder)
    rope = decoder.rope
    scaling: dict[str, Any] | None = None
    if rope.scaling != "none":
        scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        scaling = {
            **(scaling or {}),
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
        scaling["original_max_position_embeddings"] = rope.original_max_position
    dtype = "bfloat16" if all(array.dtype == jnp.bfloat16 for array in tensors.values()) else "float32"
    eagle: dict[str, Any] = {"use_aux_hidden_state": True}
    if min(config.layers) > 0:  # of the embeddings there is no block
        eagle[_LAYER_IDS] = [layer - 1 for layer in config.layers]
    described = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "attention_bias": decoder.qkv_bias,
        "draft_vocab_size": config.draft_vocab,
        _LAYER_IDS: list(config.layers),
        "eagle_config": eagle,
        "head_dim": decoder.head_dim,
        "hidden_act": decoder.activation,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position,
        "norm_before_residual": config.norm_before_residual,
        "num_attention_heads": decoder.num_heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": decoder.num_kv_heads,
        "rms_norm_eps": decoder.norm_eps,
        "rope_scaling": scaling,
        "rope_theta": rope.theta,
        "target_hidden_size": config.target_size,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vocab_size": decoder.vocab_size,
    }
    with named(folder / "model.safetensors") as file:
        save_file(tensors | {"d2t": rows - np.arange(len(rows)), "t2d": known}, str(file))
    write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
    if tokenizer is not None:
        with named(folder):
            tokenizer.save_pretrained(folder)


_THEIRS = {
    "attention_norm.scale": "input_layernorm.weight",
    "hidden_norm.scale": "hidden_norm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    **{
        f"attention.{ours}": f"self_attn.{theirs}_proj"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
    },
    **{f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def _their_name(ours: str) -> str:
    top = {"final_norm.scale": "norm.weight", "head.weight": "lm_head.weight", "embedding.table": "embed_tokens.weight"}
    if ours in top or not ours.startswith("layers.0."):
        return top.get(ours, ours)
    rest = ours.removeprefix("layers.0.")
    if rest in _THEIRS:
        return f"midlayer.{_THEIRS[rest]}"
    module, _, kind = rest.rpartition(".")
    return f"midlayer.{_THEIRS[module]}.{kind}"


def described_for(target: TransformerConfig, draft_vocab: int, **changes: Any) -> Eagle3Config:
    """The shape of a new head for a target: a layer as the target's, in a form that Llama heads have."""
    layer = dataclasses.replace(
        target,
        family="llama",
        num_layers=1,
        windows=(),
        tied_head=False,
        qk_norm=False,
        post_norms=False,
        out_bias=target.qkv_bias,  # one option stands for both in the format
        embedding_scale=1.0,
        query_scale=None,
        local_rope=None,
        final_softcap=0.0,
        attention_softcap=0.0,
    )
    layers = changes.pop("layers", None) or default_layers(target.num_layers)
    return Eagle3Config(layer, tuple(layers), target.hidden_size, draft_vocab, **changes)

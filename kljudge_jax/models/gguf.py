"""GGUF files as a source of weights: their configuration, their names, their numbers."""

from __future__ import annotations

import concurrent.futures
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from transformers import PreTrainedTokenizerFast

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.gguf_header import TensorEntry, read_header
from kljudge_jax.models.gguf_tokenizer import build_tokenizer, end_of_text

# llama.cpp's name of an architecture -> Hugging Face's. Mistral's files say "llama".
_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}

# Keys of models whose state is a running summary of the past: a rejected draft cannot be taken back.
_RECURRENT = ("ssm.", "wkv.", "shortconv.")

_KINDS = frozenset(
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
)

_TOP = {
    "token_embd.weight": "embedding.table",
    "output_norm.weight": "final_norm.scale",
    "output.weight": "head.kernel",
}
_MODULES = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.out",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_NORMS = {
    "attn_norm": "attention_norm",
    "attn_q_norm": "attention.query_norm",
    "attn_k_norm": "attention.key_norm",
    "post_attention_norm": "post_attention_norm",
    "ffn_norm": "mlp_norm",
    "post_ffw_norm": "post_mlp_norm",
}
_LAYER = re.compile(r"^blk\.(\d+)\.(\w+)\.(weight|bias)$")
_ROPE_FREQUENCIES = "rope_freqs.weight"

_VALUES_PER_CHUNK = 1 << 18  # 1 MB of float32: decoded and transposed within the processor's cache, 3 times as fast


class GGUFFile:
    """A .gguf file: configuration, weights and tokenizer. A `TensorSource`.

    The file is mapped into memory; reading a tensor touches its bytes and no others.

    Attributes:
      where: the file, for messages.
      config: what the file says it is.
      eos: ids of the tokens that end a text.

    Raises:
      InputError: the file is damaged or no GGUF, or its architecture or a tensor's type is none that runs here.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.where = str(path)
        self._metadata, entries = read_header(self.path)
        self._refuse(entries)
        self._data = np.asarray(np.memmap(self.path, np.uint8, "r"))
        divisors = None
        if _ROPE_FREQUENCIES in entries:
            divisors = self._decode(entries.pop(_ROPE_FREQUENCIES))
        self._entries = {_our_name(name): entry for name, entry in entries.items()}
        self.config = _Options(self.where, self._metadata).configure(self._entries, divisors)
        self.eos = end_of_text(self._metadata)

    def _refuse(self, entries: dict[str, TensorEntry]) -> None:
        """InputError unless it is a whole model of an architecture and of tensor types that are known here."""
        architecture = str(self._metadata.get("general.architecture"))
        known = f"choose one of {', '.join(_FAMILIES)}"
        recurrent = tuple(f"{architecture}.{part}" for part in _RECURRENT)
        if architecture.startswith(("mamba", "rwkv")) or any(key.startswith(recurrent) for key in self._metadata):
            raise InputError(
                f"{self.where} is a {architecture} model, whose recurrent state cannot be rolled back when a draft is "
                f"rejected: {known}"
            )
        if "moe" in architecture or np.any(self._metadata.get(f"{architecture}.expert_count", 0)):
            raise InputError(f"{self.where} is a mixture of experts ({architecture}), which is not supported: {known}")
        if architecture not in _FAMILIES:
            raise InputError(f"{self.where} has architecture {architecture!r}, which is not supported: {known}")
        if self._metadata.get("split.count", 1) not in (0, 1):
            raise InputError(f"{self.where} is one part of several: merge them with llama-gguf-split --merge")
        for name, entry in entries.items():
            if entry.kind not in _KINDS:
                raise InputError(
                    f"tensor {name} of {self.where} is stored as {entry.kind.name}: choose a file of "
                    f"{', '.join(sorted(kind.name for kind in _KINDS))}"
                )

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer that the file carries, with its chat template; None if it carries none.

        Raises:
          InputError: it is of a kind that is not supported, or contradicts itself.
        """
        if self._metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            return None
        return build_tokenizer(self.where, self._metadata)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by our dotted name and in our layout; one that has none keeps the file's name."""
        return {
            name: entry.shape[::-1] if name.endswith(".kernel") else entry.shape
            for name, entry in self._entries.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor in our layout, float32. Holds it and a few megabytes, not the file."""
        entry = self._entries[name]
        order = None
        if self.config.family == "llama" and ".attention.query." in name:
            order = _half_order(self.config.num_heads, self.config.head_dim)
        elif self.config.family == "llama" and ".attention.key." in name:
            order = _half_order(self.config.num_kv_heads, self.config.head_dim)
        return self._decode(entry, order, transpose=name.endswith(".kernel"))

    def _decode(self, entry: TensorEntry, order: np.ndarray | None = None, transpose: bool = False) -> np.ndarray:
        """A tensor's numbers, its outputs put in `order` (the last axis if it has one axis, else the first)."""
        stored = self._data[entry.start : entry.start + entry.size]
        if len(entry.shape) == 1:
            values = dequantize(stored, entry.kind).astype(np.float32)
            return values if order is None else values[order]
        # Quantisation blocks lie within a row, so rows can be moved, cut and decoded on their own.
        rows = stored.reshape(math.prod(entry.shape[:-1]), -1)
        if order is not None:
            rows = rows[order]
        width = entry.shape[-1]
        out = np.empty((width, len(rows)) if transpose else (len(rows), width), np.float32)
        step = max(1, _VALUES_PER_CHUNK // width)

        def decode(start: int) -> None:
            values = dequantize(rows[start : start + step], entry.kind)
            if transpose:
                out[:, start : start + step] = values.T
            else:
                out[start : start + step] = values

        # NumPy lets go of the interpreter's lock while it computes.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, range(0, len(rows), step)))
        return out if transpose else out.reshape(entry.shape)


def _our_name(theirs: str) -> str:
    """Our dotted name of the tensor that a GGUF file calls `theirs`; `theirs` if there is none."""
    if theirs in _TOP:
        return _TOP[theirs]
    layer = _LAYER.match(theirs)
    if layer is not None:
        index, module, kind = layer.groups()
        if module in _NORMS and kind == "weight":
            return f"layers.{index}.{_NORMS[module]}.scale"
        if module in _MODULES:
            return f"layers.{index}.{_MODULES[module]}.{'kernel' if kind == 'weight' else 'bias'}"
    return theirs


def _half_order(heads: int, head_dim: int) -> np.ndarray:
    """Where output i of our query or key projection lies in a llama file, int `[heads * D]`.

    llama.cpp turns dimension 2i with 2i + 1, so its converter interleaves the halves of each head; here i turns with
    i + D/2.
    """
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


class _Options:
    """The hyperparameters in a file's metadata; one that is missing or senseless is refused by name."""

    def __init__(self, where: str, metadata: dict[str, Any]):
        self.where = where
        self.metadata = metadata
        self.architecture = metadata["general.architecture"]

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def fault(self, name: str, needed: str) -> InputError:
        key = f"{self.architecture}.{name}"
        return InputError(f"{self.where} has {key} = {self.get(name)!r} where {needed} is needed: convert it again")

    def count(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one number per layer, all the same
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.fault(name, "a positive number, the same in all layers,")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fault(name, "a number")
        return float(value)

    def configure(self, entries: dict[str, TensorEntry], divisors: np.ndarray | None) -> TransformerConfig:
        """The configuration; `entries` tells what the metadata leaves out."""
        if "embedding.table" not in entries:
            raise InputError(f"{self.where} has no tensor token_embd.weight: get a file that holds a whole model")
        family = _FAMILIES[self.architecture]
        gemma = family.startswith("gemma")
        hidden, layers, heads = (self.count(n) for n in ("embedding_length", "block_count", "attention.head_count"))
        found = {name.split(".")[1] for name in entries if name.startswith("layers.")}
        if len(found) != layers:
            raise InputError(f"{self.where} announces {layers} layers and holds {len(found)}: convert it again")
        head_dim = self.count("attention.key_length", hidden // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self.count(name, head_dim) != head_dim:
                raise self.fault(name, f"the head dimension, {head_dim},")
        if divisors is not None and divisors.shape != (head_dim // 2,):
            raise InputError(
                f"{self.where} has {_ROPE_FREQUENCIES} of shape {divisors.shape} where ({head_dim // 2},) is needed: "
                "convert it again"
            )
        rope, local_rope = self.ropes(family, divisors)
        try:
            return TransformerConfig(
                family=family,
                vocab_size=entries["embedding.table"].shape[0],
                hidden_size=hidden,
                intermediate_size=self.count("feed_forward_length"),
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=self.count("attention.head_count_kv", heads),
                head_dim=head_dim,
                max_position=self.count("context_length"),
                norm_eps=self.number("attention.layer_norm_rms_epsilon"),
                activation="gelu_tanh" if gemma else "silu",
                tied_head="head.kernel" not in entries,
                qkv_bias="layers.0.attention.query.bias" in entries,
                out_bias="layers.0.attention.out.bias" in entries,
                mlp_bias="layers.0.mlp.down.bias" in entries,
                qk_norm=family in ("qwen3", "gemma3_text"),
                post_norms=gemma,
                embedding_scale=math.sqrt(hidden) if gemma else 1.0,
                query_scale=self.query_scale(family, hidden, heads, head_dim, layers),
                attention_softcap=self.number("attn_logit_softcapping", 50.0) if family == "gemma2" else 0.0,
                final_softcap=self.number("final_logit_softcapping", 30.0 if family == "gemma2" else 0.0),
                windows=self.windows(family, layers),
                rope=rope,
                local_rope=local_rope,
            )
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{self.where} contradicts itself ({error}): convert it again") from error

    def query_scale(self, family: str, hidden: int, heads: int, head_dim: int, layers: int) -> float | None:
        # llama.cpp, too, knows the 27B models, which alone scale by the width per head, by their depth.
        if (family, layers) in (("gemma2", 46), ("gemma3_text", 62)):
            return (hidden / heads) ** -0.5
        return head_dim**-0.5 if family.startswith("gemma") else None

    def windows(self, family: str, layers: int) -> tuple[int, ...]:
        """Per layer, how many tokens a query sees, itself included; 0 is all."""
        if family.startswith("qwen") or not self.get("attention.sliding_window"):
            return ()
        size = self.count("attention.sliding_window")
        # Every n-th layer of a Gemma sees everything; of Mistral none does.
        slides = self.get("attention.sliding_window_pattern", {"gemma2": 2, "gemma3_text": 6}.get(family, 0))
        if isinstance(slides, int):
            slides = [not slides or (layer + 1) % slides for layer in range(layers)]
        if len(slides) != layers:
            raise self.fault("attention.sliding_window_pattern", "a period, or one flag for each layer,")
        return tuple(size if slide else 0 for slide in slides)

    def ropes(self, family: str, divisors: np.ndarray | None) -> tuple[Rope, Rope | None]:
        """Rope of the layers that see everything, and of those with a window where it is another one."""
        # A factor without a type is linear, and was once called scale_linear.
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0)) or 1.0
        scaling = self.get("rope.scaling.type", "linear")
        if scaling not in ("none", "linear", "yarn"):
            raise self.fault("rope.scaling.type", "none, linear or yarn")
        options = {}
        if scaling == "yarn":
            options = {
                "original_max_position": self.count(
                    "rope.scaling.original_context_length", self.count("context_length")
                ),
                "beta_fast": self.number("rope.scaling.yarn_beta_fast", 32.0),
                "beta_slow": self.number("rope.scaling.yarn_beta_slow", 1.0),
                # The first key multiplies what YaRN prescribes; the second, which is newer, replaces it.
                "attention_factor": self.number("rope.scaling.attn_factor", 1.0)
                * self.number("rope.scaling.yarn_attn_factor", 0.1 * math.log(max(factor, 1.0)) + 1.0),
            }
        if divisors is not None:
            options["frequency_divisors"] = tuple(divisors.tolist())
        if scaling == "linear" and factor == 1.0:
            scaling = "none"
        rope = Rope(self.number("rope.freq_base", 10000.0), scaling, 1.0 if scaling == "none" else factor, **options)
        return rope, Rope(self.number("rope.freq_base_swa", 10000.0)) if family == "gemma3_text" else None

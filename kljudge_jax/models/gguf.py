"""GGUF files as a source of weights: their tensors by our names, decoded to float32."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import re
from pathlib import Path

import jax
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from kljudge_jax.errors import InputError
from kljudge_jax.kernels.quantize import QuantizedTensor, Scheme
from kljudge_jax.models.config import Rope
from kljudge_jax.models.gguf_blocks import form_of, integers
from kljudge_jax.models.gguf_config import config_from_gguf
from kljudge_jax.models.gguf_header import TensorEntry, read_header
from kljudge_jax.models.gguf_tokenizer import build_tokenizer, end_of_text
from kljudge_jax.models.quiet_transformers import PreTrainedTokenizerFast

_KINDS = frozenset(
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
)

_TOP = {
    "token_embd.weight": "embedding.table",
    "output_norm.weight": "final_norm.scale",
    "output.weight": "head.weight",
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

_VALUES_PER_CHUNK = 1 << 18  # 1 MB of float32: decoded within the processor's cache


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
        divisors = entries.pop("rope_freqs.weight", None)
        self._entries = {_our_name(name): entry for name, entry in entries.items()}
        self.config = config_from_gguf(self.where, self._metadata, self.shapes())
        for name, entry in entries.items():
            if entry.kind not in _KINDS:
                raise InputError(
                    f"tensor {name} of {self.where} is stored as {entry.kind.name}: choose a file of "
                    f"{', '.join(sorted(kind.name for kind in _KINDS))}"
                )
        self._data = np.asarray(np.memmap(self.path, np.uint8, "r"))
        if divisors is not None:
            self.config = dataclasses.replace(self.config, rope=self._with_divisors(self.config.rope, divisors))
        self.eos = end_of_text(self._metadata)

    def _with_divisors(self, rope: Rope, entry: TensorEntry) -> Rope:
        """The rope with its frequencies divided by the numbers in that tensor: how Llama 3 is scaled here."""
        half = self.config.head_dim // 2
        if entry.kind != GGMLQuantizationType.F32 or entry.shape != (half,):
            raise InputError(
                f"{self.where} has rope_freqs.weight of {list(entry.shape)} {entry.kind.name} where [{half}] F32 is "
                "needed: convert it again"
            )
        return dataclasses.replace(rope, frequency_divisors=tuple(self._decode(entry).tolist()))

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer that the file carries, with its chat template; None if it carries none.

        Raises:
          InputError: it is of a kind that is not supported, or contradicts itself.
        """
        if str(self._metadata.get("tokenizer.ggml.model")) in ("None", "none", "no_vocab"):
            return None
        return build_tokenizer(self.where, self._metadata)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by our dotted name and in our layout; one that has none keeps the file's name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        """One tensor in our layout, or a part of it, float32. Holds it and a few megabytes, not the file."""
        entry = self._entries[name]
        return self._decode(entry, self._order(name), part)

    def schemes(self) -> dict[str, Scheme]:
        """How the file's quantized matrices are stored, by our dotted name."""
        kinds = {name: form_of(entry.kind) for name, entry in self._entries.items() if len(entry.shape) == 2}
        return {name: scheme for name, scheme in kinds.items() if scheme is not None}

    def read_quantized(self, name: str, rows: slice) -> QuantizedTensor:
        """Some rows of a matrix of `schemes`, as the file has it."""
        entry, order = self._entries[name], self._order(name)
        stored = self._data[entry.start : entry.start + entry.size].reshape(entry.shape[0], -1)
        stored = stored[rows if order is None else order[rows]]
        step = max(1, _VALUES_PER_CHUNK // entry.shape[-1])
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            starts = range(0, len(stored), step)
            pieces = list(pool.map(lambda start: integers(stored[start : start + step], entry.kind), starts))
        values, scale = (jax.device_put(np.concatenate([piece[i] for piece in pieces])) for i in (0, 1))
        least = [piece[2] for piece in pieces if piece[2] is not None]
        minimum = jax.device_put(np.concatenate(least)) if least else None
        scheme = form_of(entry.kind)
        assert scheme is not None
        return QuantizedTensor(values, scale, minimum, (len(stored), entry.shape[-1]), scheme)

    def _order(self, name: str) -> np.ndarray | None:
        """Where the outputs of that matrix lie in the file; None is where they lie here."""
        if self.config.family == "llama" and ".attention.query." in name:
            return _half_order(self.config.num_heads, self.config.head_dim)
        if self.config.family == "llama" and ".attention.key." in name:
            return _half_order(self.config.num_kv_heads, self.config.head_dim)
        return None

    def _decode(
        self,
        entry: TensorEntry,
        order: np.ndarray | None = None,
        part: tuple[slice, ...] | None = None,
    ) -> np.ndarray:
        """A tensor's numbers, its outputs put in `order` (the last axis if it has one axis, else the first); then the
        `part` of them, of which no more is decoded than whole blocks."""
        stored = self._data[entry.start : entry.start + entry.size]
        if len(entry.shape) == 1:
            values = dequantize(stored, entry.kind).astype(np.float32)
            values = values if order is None else values[order]
            return values if part is None else values[part].copy()
        # Quantisation blocks lie within a row, so rows can be moved, cut and decoded on their own.
        rows = stored.reshape(math.prod(entry.shape[:-1]), -1)
        if order is not None:
            rows = rows[order if part is None else order[part[0]]]
        elif part is not None:
            rows = rows[part[0]]
        width = entry.shape[-1]
        if part is not None:
            block, size = GGML_QUANT_SIZES[entry.kind]
            first, last = part[1].start // block, -(-part[1].stop // block)
            rows, width = rows[:, first * size : last * size], (last - first) * block
        out = np.empty((len(rows), width), np.float32)
        step = max(1, _VALUES_PER_CHUNK // width)

        def decode(start: int) -> None:
            values = np.ascontiguousarray(rows[start : start + step])
            out[start : start + step] = dequantize(values, entry.kind)

        # NumPy lets go of the interpreter's lock while it computes.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, range(0, len(rows), step)))
        if part is not None:
            return out[:, part[1].start - first * block : part[1].stop - first * block]
        return out if len(entry.shape) == 2 else out.reshape(entry.shape)


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
            return f"layers.{index}.{_MODULES[module]}.{kind}"
    return theirs


def _half_order(heads: int, head_dim: int) -> np.ndarray:
    """Where output i of our query or key projection lies in a llama file, int `[heads * D]`.

    llama.cpp turns dimension 2i with 2i + 1, so its converter interleaves the halves of each head; here i turns with
    i + D/2.
    """
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)

"""The name table: a Hugging Face checkpoint's tensors as parameters of our transformer."""

from __future__ import annotations

import re

import numpy as np

_TOP = {
    "embed_tokens.weight": "embedding.table",
    "norm.weight": "final_norm.scale",
    "lm_head.weight": "head.kernel",
}

_MODULES = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}

_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
}

# Gemma's norm after attention bears the name that others give to the norm before the MLP.
_GEMMA_NORMS = _NORMS | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}

_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)")
_LAYER = re.compile(r"^layers\.(\d+)\.(.+)\.(weight|bias)$")
_NOT_PARAMETERS = re.compile(r"rotary_emb\.inv_freq$|^(model\.)?(vision_tower|multi_modal_projector)\.")


def our_name(theirs: str, family: str, tied_head: bool) -> str | None:
    """Our name of the tensor that a Hugging Face checkpoint calls `theirs`.

    Returns:
      The dotted name as `transformer.parameters` spells it; `theirs` itself if the table does not know it; None if it
      is no parameter of the language model (rope buffers, a vision tower, the copy of a tied head).
    """
    if _NOT_PARAMETERS.search(theirs) or (tied_head and theirs.endswith("lm_head.weight")):
        return None
    name = _PREFIX.sub("", theirs)
    if name in _TOP:
        return _TOP[name]
    layer = _LAYER.match(name)
    if layer is None:
        return theirs
    index, module, kind = layer.groups()
    norms = _GEMMA_NORMS if family.startswith("gemma") else _NORMS
    if module in norms and kind == "weight":
        return f"layers.{index}.{norms[module]}.scale"
    if module in _MODULES:
        return f"layers.{index}.{_MODULES[module]}.{'kernel' if kind == 'weight' else 'bias'}"
    return theirs


def our_layout(name: str, array: np.ndarray, family: str) -> np.ndarray:
    """A checkpoint's tensor in the layout of our parameter `name`: kernels `[I, O]`, norms as the plain factor."""
    if name.endswith(".kernel"):
        return array.T
    if name.endswith(".scale") and family.startswith("gemma"):
        return array.astype(np.float32) + 1.0  # Gemma stores w and applies 1 + w.
    return array


def their_part(name: str, part: tuple[slice, ...]) -> tuple[slice, ...]:
    """Where a checkpoint's tensor holds the part of our parameter `name` that one slice an axis cuts out."""
    return part[::-1] if name.endswith(".kernel") else part


def their_layout(name: str, array: np.ndarray, family: str) -> np.ndarray:
    """The inverse of `our_layout`."""
    if name.endswith(".kernel"):
        return array.T
    if name.endswith(".scale") and family.startswith("gemma"):
        return array - np.float32(1.0)
    return array


def our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `our_layout` gives to a tensor of that shape."""
    return shape[::-1] if name.endswith(".kernel") else shape

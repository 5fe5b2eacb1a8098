"""What a GGUF file's metadata says a model is, read as our configuration.

The conventions are llama.cpp's: `src/models/*.cpp` for what a key means and what its absence does, `conversion/` for
what is written.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope, TransformerConfig

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


def config_from_gguf(where: str, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TransformerConfig:
    """The configuration of a GGUF file, but for what it keeps in a tensor: `rope_freqs`.

    Args:
      where: the file, for messages.
      metadata: the file's, by key.
      shapes: of its tensors, by our names; they tell what the metadata leaves out.

    Raises:
      InputError: the architecture does not run here, its cache cannot roll back, or a hyperparameter is missing,
        senseless or not supported; the message names it.
    """
    options = _Options(where, metadata)
    options.refuse()
    return options.configure(shapes)


class _Options:
    """The hyperparameters in a file's metadata; one that is missing or senseless is refused by name."""

    def __init__(self, where: str, metadata: dict[str, Any]):
        self.where = where
        self.metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))

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

    def refuse(self) -> None:
        """InputError unless the file is a whole model of an architecture that runs here."""
        known = f"choose one of {', '.join(_FAMILIES)}"
        recurrent = tuple(f"{self.architecture}.{part}" for part in _RECURRENT)
        if self.architecture.startswith(("mamba", "rwkv")) or any(key.startswith(recurrent) for key in self.metadata):
            raise InputError(
                f"{self.where} is a {self.architecture} model, whose recurrent state cannot be rolled back when a "
                f"draft is rejected: {known}"
            )
        if "moe" in self.architecture or np.any(self.get("expert_count", 0)):
            raise InputError(
                f"{self.where} is a mixture of experts ({self.architecture}), which is not supported: {known}"
            )
        if self.architecture not in _FAMILIES:
            raise InputError(f"{self.where} has architecture {self.architecture!r}, which is not supported: {known}")
        parts = self.metadata.get("split.count", 1)
        if not isinstance(parts, int) or parts > 1:
            raise InputError(f"{self.where} is one part of several: merge them with llama-gguf-split --merge")

    def configure(self, shapes: dict[str, tuple[int, ...]]) -> TransformerConfig:
        if "embedding.table" not in shapes:
            raise InputError(f"{self.where} has no tensor token_embd.weight: get a file that holds a whole model")
        family = _FAMILIES[self.architecture]
        gemma = family.startswith("gemma")
        hidden, layers, heads = (self.count(n) for n in ("embedding_length", "block_count", "attention.head_count"))
        found = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
        if len(found) != layers:
            raise InputError(f"{self.where} announces {layers} layers and holds {len(found)}: convert it again")
        head_dim = self.count("attention.key_length", hidden // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self.count(name, head_dim) != head_dim:
                raise self.fault(name, f"the head dimension, {head_dim},")
        try:
            rope, local_rope = self.ropes(family)
            return TransformerConfig(
                family=family,
                vocab_size=shapes["embedding.table"][0],
                hidden_size=hidden,
                intermediate_size=self.count("feed_forward_length"),
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=self.count("attention.head_count_kv", heads),
                head_dim=head_dim,
                max_position=self.count("context_length"),
                norm_eps=self.number("attention.layer_norm_rms_epsilon"),
                activation="gelu_tanh" if gemma else "silu",
                tied_head="head.weight" not in shapes,
                qkv_bias="layers.0.attention.query.bias" in shapes,
                out_bias="layers.0.attention.out.bias" in shapes,
                mlp_bias="layers.0.mlp.down.bias" in shapes,
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
        if family.startswith("qwen") or not np.any(self.get("attention.sliding_window", 0)):
            return ()
        size = self.count("attention.sliding_window")
        # Every n-th layer of a Gemma sees everything; of Mistral none does.
        slides = self.get("attention.sliding_window_pattern", {"gemma2": 2, "gemma3_text": 6}.get(family, 0))
        if isinstance(slides, int):
            slides = np.array([not slides or (layer + 1) % slides for layer in range(layers)])
        if not isinstance(slides, np.ndarray) or len(slides) != layers:
            raise self.fault("attention.sliding_window_pattern", "a period, or one flag for each layer,")
        return tuple(size if slide else 0 for slide in slides)

    def ropes(self, family: str) -> tuple[Rope, Rope | None]:
        """Rope of the layers that see everything, and of those with a window where it is another one."""
        # A factor without a type is linear, and was once called scale_linear.
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0)) or 1.0
        scaling = str(self.get("rope.scaling.type", "linear"))
        if scaling not in ("none", "linear", "yarn"):
            raise self.fault("rope.scaling.type", "none, linear or yarn")
        options: dict[str, Any] = {}
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
        if scaling == "linear" and factor == 1.0:
            scaling = "none"
        rope = Rope(self.number("rope.freq_base", 10000.0), scaling, 1.0 if scaling == "none" else factor, **options)
        return rope, Rope(self.number("rope.freq_base_swa", 10000.0)) if family == "gemma3_text" else None

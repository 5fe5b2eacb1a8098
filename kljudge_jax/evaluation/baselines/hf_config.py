"""Our configuration as a config.json says it: the inverse of `models.families`."""

from __future__ import annotations

from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.families import supported_families

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def hf_config(config: TransformerConfig) -> dict[str, Any]:
    """The content of a config.json, as Transformers 5 writes it, that `config_from_hf` reads as `config`.

    `Rope.frequency_divisors` are left out, for which no config.json has words, and so is a bias that a family lacks.

    Raises:
      InputError: Transformers has no model of that configuration.
    """
    family = config.family
    if family == "llama" and config.windows:
        family = "mistral"  # what GGUF files call llama
    if family not in supported_families():
        raise InputError(f"Transformers has no family {family!r}: leave out the cells hf, hf:assisted and hf:lookup")
    return {
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        # The ids of special tokens belong to the pair, and a family's defaults to nobody.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **_windows(config, family),
        **(_gemma(config) if family.startswith("gemma") else _plain(config, family)),
    }


def _plain(config: TransformerConfig, family: str) -> dict[str, Any]:
    """What Llama, Mistral and Qwen say in their way."""
    options: dict[str, Any] = {"hidden_act": _ACTIVATIONS[config.activation], "rope_parameters": _rope(config.rope)}
    if family in ("llama", "qwen3"):
        options["attention_bias"] = config.qkv_bias or config.out_bias
    if family == "llama":
        options["mlp_bias"] = config.mlp_bias
    return options


def _gemma(config: TransformerConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.query_scale is None else config.query_scale**-2
    whole = round(scalar)
    rope = _rope(config.rope)
    if config.family == "gemma3_text":
        rope = {"full_attention": rope, "sliding_attention": _rope(config.local_rope or config.rope)}
    return {
        "hidden_activation": _ACTIVATIONS[config.activation],
        "rope_parameters": rope,
        "attention_bias": config.qkv_bias or config.out_bias,
        "query_pre_attn_scalar": whole if abs(scalar - whole) < 1e-6 * whole else scalar,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
    }


def _windows(config: TransformerConfig, family: str) -> dict[str, Any]:
    """Which layers see how far."""
    sizes = {size for size in config.windows if size}
    if len(sizes) > 1 or (family == "mistral" and config.windows and 0 in config.windows):
        raise InputError(
            f"Transformers has no {family} model with windows {sorted(set(config.windows))}: leave out the cells hf, "
            "hf:assisted and hf:lookup"
        )
    if family == "llama":
        return {}
    size = max(sizes, default=None)
    if family == "mistral":
        return {"sliding_window": size}
    kinds = ["sliding_attention" if config.window(i) else "full_attention" for i in range(config.num_layers)]
    options = {"sliding_window": size, "layer_types": kinds}
    return options | ({"use_sliding_window": size is not None} if family.startswith("qwen") else {})


def _rope(rope: Rope) -> dict[str, Any]:
    options: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.scaling == "none":
        return options
    options |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "linear":
        return options
    options["original_max_position_embeddings"] = rope.original_max_position
    if rope.scaling == "llama3":
        return options | {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    return options | {
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "attention_factor": rope.attention_factor,
        "truncate": rope.truncate,
    }

"""Which Hugging Face model families run here, and how their config.json reads as ours."""

from __future__ import annotations

import math
import re
from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope, TransformerConfig

_GEMMA = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

# What a config.json means by a value that it leaves out: the defaults of Transformers' configuration classes. Files of
# Gemma 3 with vision leave out most of them.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "mistral": {"hidden_act": "silu", "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"hidden_act": "silu", "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "hidden_act": "silu",
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "gemma2": _GEMMA | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    "gemma3_text": _GEMMA
    | {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
}

# Their state is a running summary of the past, or a buffer that overwrites it: a rejected draft cannot be taken back.
_NO_ROLLBACK = re.compile(
    r"bailing_hybrid|bamba|falcon_h1|falcon_mamba|granitemoehybrid|hymba|jamba|kimi_linear|lfm[23]\w*|mamba2?|minimax|"
    r"nemotron_h|olmo_hybrid|phi4flash|plamo2|qwen3_5\w*|qwen3_next|recurrent_gemma|retnet|rwkv\w*|xlstm|zamba2?"
)

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class _Options:
    """The values of a config.json over its family's defaults; a value of the wrong type is refused by name."""

    def __init__(self, values: dict[str, Any], family: str):
        given = {name: value for name, value in values.items() if value is not None}
        # A null says "none" where leaving out says "default".
        self.values = {name: value for name, value in _DEFAULTS[family].items() if name not in values} | given
        self.family = family

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise InputError(f"config.json of this {self.family} model has no {name}: add it")
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def count(self, name: str, default: int | None = None) -> int:
        value = self[name] if default is None else self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"config.json: {name} is {value!r} where a count is needed")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self[name] if default is None else self.get(name, default)
        return _number(name, value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"config.json: {name} is {value!r} where true or false is needed")
        return value


def supported_families() -> tuple[str, ...]:
    """The `model_type` of every family that runs here."""
    return (*_DEFAULTS, "gemma3")


def config_from_hf(config: dict[str, Any]) -> TransformerConfig:
    """Reads a config.json, as Transformers 4 or 5 writes it.

    Args:
      config: the file's content. Of a Gemma 3 with vision the text part is taken.

    Raises:
      InputError: the family does not run here, its cache cannot roll back, or an option is not supported; the message
        names it.
    """
    family = config.get("model_type")
    if _NO_ROLLBACK.fullmatch(str(family)):
        raise InputError(
            f"{family} models keep a recurrent state or ring buffer that cannot be rolled back when a draft is "
            f"rejected: choose one of {', '.join(supported_families())}"
        )
    if family not in supported_families():
        raise InputError(f"model type {family!r} is not supported: choose one of {', '.join(supported_families())}")
    tied = config.get("tie_word_embeddings")
    try:
        if family == "gemma3":
            config, family = dict(config.get("text_config") or {}), "gemma3_text"
            if tied is not None:
                config["tie_word_embeddings"] = tied
        _refuse_options(config, family)
        return _configure(_Options(config, family), family)
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # a value of a kind that no option has
        raise InputError(f"config.json of this {family} model contradicts itself: {error}") from error


def _refuse_options(config: dict[str, Any], family: str) -> None:
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(name):
            raise InputError(f"this {family} model has {name} = {config[name]}: mixtures of experts are not supported")
    for name in ("use_bidirectional_attention", "is_encoder_decoder"):
        if config.get(name):
            raise InputError(f"this {family} model sets {name}: only causal decoders can be decoded token by token")
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "an unnamed method")
        raise InputError(f"these weights are quantized with {method}: use the unquantized model or a GGUF file")


def _configure(options: _Options, family: str) -> TransformerConfig:
    gemma = family.startswith("gemma")
    heads, hidden, layers = (options.count(n) for n in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    if not heads or not layers:
        raise InputError("config.json: num_attention_heads and num_hidden_layers must be at least 1")
    head_dim = options.count("head_dim", hidden // heads)
    activation = options["hidden_activation" if gemma else "hidden_act"]
    if activation not in _ACTIVATIONS:
        raise InputError(f"activation {activation!r} is not supported: expected one of {', '.join(_ACTIVATIONS)}")
    rope, local_rope = _ropes(options, family)
    attention_bias = family == "qwen2" or options.flag("attention_bias")
    return TransformerConfig(
        family=family,
        vocab_size=options.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=options.count("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=options.count("num_key_value_heads", heads),
        head_dim=head_dim,
        max_position=options.count("max_position_embeddings", 2048),
        norm_eps=options.number("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[activation],
        tied_head=options.flag("tie_word_embeddings"),
        qkv_bias=attention_bias,
        out_bias=attention_bias and family != "qwen2",
        mlp_bias=options.flag("mlp_bias"),
        qk_norm=family in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        query_scale=options.number("query_pre_attn_scalar") ** -0.5 if gemma else None,
        attention_softcap=options.number("attn_logit_softcapping", 0.0) if family == "gemma2" else 0.0,
        final_softcap=options.number("final_logit_softcapping", 0.0) if gemma else 0.0,
        windows=_windows(options, family, layers),
        rope=rope,
        local_rope=local_rope,
    )


def _windows(options: _Options, family: str, layers: int) -> tuple[int, ...]:
    """Per layer, how many tokens a query sees, itself included; 0 is all."""
    size = options.count("sliding_window", 0)
    if family in ("qwen2", "qwen3") and not options.flag("use_sliding_window"):
        size = 0
    if family == "llama" or not size:
        return ()
    kinds = options.get("layer_types")
    if kinds is None:
        if family in ("qwen2", "qwen3"):
            full = options.count("max_window_layers")
            slides = [layer >= full for layer in range(layers)]
        else:
            # Every n-th layer of a Gemma sees everything; of Mistral none does.
            every = {"gemma2": 2, "gemma3_text": options.count("sliding_window_pattern", 6)}.get(family, layers + 1)
            slides = [bool((layer + 1) % every) for layer in range(layers)]
    else:
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown:
            raise InputError(f"layer type {unknown[0]!r} is not supported: expected full_attention, sliding_attention")
        if len(kinds) != layers:
            raise InputError(f"config.json has {len(kinds)} layer_types for {layers} layers: give one each")
        slides = [kind == "sliding_attention" for kind in kinds]
    return tuple(size if slide else 0 for slide in slides) if any(slides) else ()


def _ropes(options: _Options, family: str) -> tuple[Rope, Rope | None]:
    """Rope of the layers that see everything, and of those with a window where it is another one."""
    theta = options.number("rope_theta", 10_000.0)
    parameters = dict(options.get("rope_scaling") or options.get("rope_parameters") or {})
    full, local = parameters, None
    if any(name.endswith("_attention") for name in parameters):
        full, local = parameters.get("full_attention") or {}, parameters.get("sliding_attention") or {}
    if family == "gemma3_text":
        local = {"rope_theta": options.number("rope_local_base_freq")} | (local or {})
    return _rope(full, theta, options), None if local is None else _rope(local, theta, options)


def _rope(parameters: dict[str, Any], theta: float, options: _Options) -> Rope:
    # Transformers 4 wrote "type" at first, "rope_type" later.
    scaling = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = _number("rope_theta", parameters.get("rope_theta") or theta)
    partial = parameters.get("partial_rotary_factor") or options.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise InputError(f"partial_rotary_factor {partial} is not supported: rope must turn the whole head")
    if scaling == "default":
        return Rope(theta)
    if scaling not in ("linear", "llama3", "yarn"):
        raise InputError(f"rope type {scaling!r} is not supported: expected default, linear, llama3 or yarn")

    def number(name: str, default: float | None = None) -> float:
        value = parameters.get(name)
        if value is None and default is None:
            raise InputError(f"config.json: rope type {scaling} needs {name}")
        return _number(name, default if value is None else value)

    if scaling == "linear":
        return Rope(theta, "linear", number("factor"))
    longest = options.count("max_position_embeddings", 2048)
    name = "original_max_position_embeddings"
    original = int(number(name, options.number(name, longest)))
    if scaling == "llama3":
        return Rope(
            theta,
            "llama3",
            number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_position=original,
        )
    factor = number("factor", longest / original)
    return Rope(
        theta,
        "yarn",
        factor,
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        original_max_position=original,
        attention_factor=_yarn_attention_factor(parameters, factor),
        truncate=bool(parameters.get("truncate", True)),
    )


def _yarn_attention_factor(parameters: dict[str, Any], factor: float) -> float:
    """What multiplies cos and sin: eq. 22 of arXiv 2309.00071, or DeepSeek's ratio of two of them."""

    def strength(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return _number("attention_factor", parameters["attention_factor"])
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return strength(_number("mscale", parameters["mscale"])) / strength(
            _number("mscale_all_dim", parameters["mscale_all_dim"])
        )
    return strength(1.0)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"config.json: {name} is {value!r} where a number is needed")
    return float(value)

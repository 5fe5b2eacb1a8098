"""What a decoder is made of: the static half of a model, hashable, so that it can cross a jit boundary."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_LARGEST = 2**31 - 1  # what an index of an array holds


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      theta: base of the geometric series of wavelengths.
      scaling: "none", "linear", "llama3" (Llama 3.1 and later) or "yarn" (arXiv 2309.00071).
      factor: how many times longer the context is than `original_max_position`.
      low_freq_factor: the lower end of the band that "llama3" interpolates over.
      high_freq_factor: its upper end.
      beta_fast: the upper end of the band that "yarn" interpolates over, in rotations.
      beta_slow: its lower end.
      original_max_position: context length before scaling, in tokens ("llama3", "yarn").
      attention_factor: multiplies cos and sin ("yarn").
      truncate: whether "yarn" rounds its band to whole dimensions.
      frequency_divisors: D/2 numbers that divide the frequencies; what a GGUF file stores as `rope_freqs`.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position: int = 8192
    attention_factor: float = 1.0
    truncate: bool = True
    frequency_divisors: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.scaling not in ("none", "linear", "llama3", "yarn"):
            raise ValueError(f"unknown rope scaling {self.scaling!r}: expected none, linear, llama3 or yarn")
        if not (
            self.theta > 0
            and self.factor > 0
            and self.low_freq_factor > 0
            and 0 < self.original_max_position <= _LARGEST
        ):
            raise ValueError("theta, factor, low_freq_factor and original_max_position of a rope are above 0")
        if self.scaling == "yarn" and not (self.beta_fast > 0 and self.beta_slow > 0 and self.theta != 1):
            raise ValueError("beta_fast and beta_slow of a yarn rope are above 0, and its theta is not 1")
        if self.scaling == "llama3" and self.high_freq_factor == self.low_freq_factor:
            raise ValueError("high_freq_factor and low_freq_factor of a llama3 rope differ")
        if self.frequency_divisors is not None and not all(divisor > 0 for divisor in self.frequency_divisors):
            raise ValueError("frequency_divisors are above 0")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Angular frequency of every pair of dimensions, radians per position, float32 `[D/2]`."""
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
        scaled: np.ndarray
        plain = (1.0 / np.float32(self.theta) ** exponent).astype(np.float32)
        if self.scaling == "none":
            scaled = plain
        elif self.scaling == "linear":
            scaled = plain / self.factor
        elif self.scaling == "llama3":
            scaled = self._llama3(plain)
        elif self.scaling == "yarn":
            scaled = self._yarn(plain, head_dim)
        else:
            raise ValueError(f"unknown rope scaling {self.scaling!r}")
        if self.frequency_divisors is not None:
            scaled = scaled / np.asarray(self.frequency_divisors, np.float32)
        return scaled.astype(np.float32)

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        wavelength = 2 * np.pi / plain
        longest = self.original_max_position / self.low_freq_factor
        shortest = self.original_max_position / self.high_freq_factor
        smooth = (self.original_max_position / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - smooth) * plain / self.factor + smooth * plain
        return np.where(wavelength > longest, plain / self.factor, np.where(wavelength < shortest, plain, between))

    def _yarn(self, plain: np.ndarray, head_dim: int) -> np.ndarray:
        def dimension_of(rotations: float) -> float:
            period = self.original_max_position / (rotations * 2 * math.pi)
            return head_dim * math.log(period) / (2 * math.log(self.theta))

        low, high = dimension_of(self.beta_fast), dimension_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001)
        keep = 1 - np.clip(ramp, 0, 1)
        return plain / self.factor * (1 - keep) + plain * keep


_AT_LEAST_ONE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    "max_position",
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and options of a decoder-only transformer. Hashable.

    Attributes:
      family: name of the model family, as Hugging Face's `model_type` spells it.
      vocab_size: V.
      hidden_size: H.
      intermediate_size: F, of the MLP.
      num_layers: L.
      num_heads: N, of queries.
      num_kv_heads: G, of keys and values; N is a multiple of G.
      head_dim: D.
      max_position: the longest sequence the model was made for, in tokens.
      norm_eps: epsilon of every RMS norm.
      activation: "silu", "gelu" or "gelu_tanh".
      tied_head: the head is the embedding's transpose.
      qkv_bias: the projections to queries, keys and values add a bias.
      out_bias: attention's output projection adds one.
      mlp_bias: those of the MLP add one.
      qk_norm: queries and keys are normalised per head before rope (Qwen3, Gemma 3).
      post_norms: a second norm after attention and after the MLP, before the residual sum (Gemma 2, 3).
      embedding_scale: multiplies the embeddings (Gemma: sqrt(H)).
      query_scale: multiplies queries before the dot with keys; usually D ** -0.5.
      attention_softcap: c of `c * tanh(x / c)` on attention's scores; 0 is none.
      final_softcap: the same on logits.
      windows: per layer, how many tokens a query sees, itself included; 0 is all before it.
      rope: of layers that see everything, and of the others unless `local_rope` is set.
      local_rope: of layers with a window (Gemma 3).
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int = 2048
    norm_eps: float = 1e-6
    activation: str = "silu"
    tied_head: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    query_scale: float | None = None
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    windows: tuple[int, ...] = ()
    rope: Rope = Rope()
    local_rope: Rope | None = None

    def __post_init__(self):
        for name in _AT_LEAST_ONE:
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} lies from 1 to {_LARGEST}, got {getattr(self, name)}")
        if any(not 0 <= window <= _LARGEST for window in self.windows):
            raise ValueError(f"windows lie from 0 to {_LARGEST}, got {self.windows}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads are not a multiple of {self.num_kv_heads} kv heads")
        if self.head_dim % 2:
            raise ValueError(f"rope needs an even head dimension, got {self.head_dim}")
        if self.activation not in ("silu", "gelu", "gelu_tanh"):
            raise ValueError(f"unknown activation {self.activation!r}: expected silu, gelu or gelu_tanh")
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(f"{len(self.windows)} windows for {self.num_layers} layers")

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    def layer_rope(self, layer: int) -> Rope:
        return self.local_rope if self.local_rope is not None and self.window(layer) else self.rope

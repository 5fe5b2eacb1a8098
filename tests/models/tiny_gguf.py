"""Tiny GGUF files, written as llama.cpp's converter writes them."""

import gguf
import numpy as np
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel

F32 = gguf.GGMLQuantizationType.F32
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def write(path, architecture, keys=None, tensors=None):
    """A file of metadata (keys of the architecture start with a dot) and tensors, each an array or (bytes, kind)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (keys or {}).items():
        key = architecture + key if key.startswith(".") else key
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_int32(key, value) if value < 0 else writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif len(value):
            writer.add_array(key, value)
    for name, tensor in (tensors or {}).items():
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, F32)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(rows, heads):
    """A llama query or key projection as the converter leaves it: the two halves of each head interleaved."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def hyperparameters(config):
    """The keys that the converter writes for a Transformers config."""
    rope = getattr(config, "rope_parameters", None) or {}
    full = rope.get("full_attention", rope)
    keys = {
        ".block_count": config.num_hidden_layers,
        ".context_length": config.max_position_embeddings,
        ".embedding_length": config.hidden_size,
        ".feed_forward_length": config.intermediate_size,
        ".attention.head_count": config.num_attention_heads,
        ".attention.head_count_kv": config.num_key_value_heads,
        ".attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        ".rope.freq_base": float(full["rope_theta"]),
    }
    if getattr(config, "head_dim", None):
        keys |= {".attention.key_length": config.head_dim, ".attention.value_length": config.head_dim}
    if full.get("rope_type") in ("linear", "yarn"):
        keys |= {".rope.scaling.type": full["rope_type"], ".rope.scaling.factor": float(full["factor"])}
    if full.get("rope_type") == "yarn":
        keys[".rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
        keys |= {f".rope.scaling.yarn_{name}": float(full[name]) for name in ("beta_fast", "beta_slow") if name in full}
    if config.model_type in ("mistral", "gemma2", "gemma3_text") and config.sliding_window:
        keys[".attention.sliding_window"] = config.sliding_window
    if config.model_type == "gemma2":
        keys[".attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        keys[".final_logit_softcapping"] = float(config.final_logit_softcapping)
    return keys


def model_tensors(model):
    """The arrays of a Transformers model by GGUF name, as the converter leaves them."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config.num_hidden_layers)
    tensors = {}
    for theirs, value in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        if architecture == "llama" and ".q_proj." in theirs:
            array = interleaved(array, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in theirs:
            array = interleaved(array, config.num_key_value_heads)
        if architecture.startswith("gemma") and theirs.endswith("norm.weight"):
            array = array + 1
        tensors[names.get_name(theirs, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(array)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        dim = config.hidden_size // config.num_attention_heads
        plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
        tensors["rope_freqs.weight"] = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    return tensors


def write_model(path, model, kind=F32, keys=None):
    """A Transformers model as a GGUF file, its matrices stored as `kind`; `keys` add to the metadata or replace it."""
    tensors = {
        name: (quantize(array, kind), kind) if array.ndim == 2 else array
        for name, array in model_tensors(model).items()
    }
    family = model.config.model_type
    architecture = ARCHITECTURES.get(family, family)
    return write(path, architecture, hyperparameters(model.config) | (keys or {}), tensors)


def write_llama(path, tensors=None, keys=None):
    """A llama of one layer that holds the given tensors, and beside them little that a loader asks for."""
    base = {
        ".block_count": 1,
        ".context_length": 64,
        ".embedding_length": 8,
        ".feed_forward_length": 16,
        ".attention.head_count": 2,
        ".attention.layer_norm_rms_epsilon": 1e-5,
    }
    held = {"token_embd.weight": np.zeros((6, 8), np.float32), "blk.0.attn_norm.weight": np.ones(8, np.float32)}
    return write(path, "llama", base | (keys or {}), held | (tensors or {}))


def byte_tokenizer():
    """Metadata of a tokenizer with a token for each byte, and one for "th"."""
    tokens = [*sorted(ByteLevel.alphabet()), "th"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.eos_token_id": 0,
    }

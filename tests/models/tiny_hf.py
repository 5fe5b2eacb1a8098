"""Tiny Hugging Face models and tokenizers, made on the spot."""

import numpy as np

_VOCAB = 64
_SHAPE = dict(
    vocab_size=_VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=None,
)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
_GEMMA = dict(head_dim=16, sliding_window=5, query_pre_attn_scalar=12)

FAMILIES = {
    "llama2": ("llama", {}),
    "llama3": ("llama", dict(rope_parameters=_LLAMA3, attention_bias=True, mlp_bias=True)),
    "smollm2": ("llama", dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e5))),
    "mistral": ("mistral", dict(sliding_window=6, head_dim=16)),
    "qwen2": ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen3": ("qwen3", dict(head_dim=16, attention_bias=True)),
    "qwen3-yarn": (
        "qwen3",
        dict(
            head_dim=16,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0
            ),
        ),
    ),
    "gemma2": ("gemma2", dict(**_GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma3": (
        "gemma3_text",
        dict(
            **_GEMMA,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e4),
                "sliding_attention": dict(rope_type="default", rope_theta=100.0),
            },
        ),
    ),
}


def make_hf_model(name, seed=0, **changes):
    """A model of that family with weights large enough that no part of it can be left out unnoticed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, options = FAMILIES[name]
    config = AutoConfig.for_model(family, **{**_SHAPE, **options, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.25))
    return model


def hf_logits(model, tokens):
    """Its logits of int tokens `[B, T]`, float32 `[B, T, V]`."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy()


def hf_processed(logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """Float32 logits `[..., V]` after its own temperature, top-k, top-p and min-p, in this order."""
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.asarray(logits, np.float32)
    scores = torch.tensor(logits.reshape(-1, logits.shape[-1]))
    warpers = [TemperatureLogitsWarper(float(temperature))]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        scores = warper(None, scores)
    return scores.numpy().reshape(logits.shape)


def make_tokenizer(words=_VOCAB, specials=("<s>", "</s>"), eos="</s>", bos="<s>", template=None):
    """A word-level tokenizer: specials first, then w2, w3, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(specials)}
    vocab |= {f"w{i}": i for i in range(len(vocab), words)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=f"w{words - 1}"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer

"""Tiny heads in the public formats, and the published forward passes beside them, in NumPy and without a cache.

The transcriptions read the files by themselves, and know nothing of the package.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file
from tiny_hf import make_hf_model, make_tokenizer
from tiny_pairs import NEVER

import kljudge_jax as kj
from kljudge_jax.core.prefill import prefill
from kljudge_jax.core.protocols import Context, Models, Request, Window
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.state import Prefill
from kljudge_jax.drafters.heads import drafter_of

LAYERS = 6
HIDDEN = 32


def write_target(folder, family, vocab_size=64, **changes):
    """A tiny target of a family in a folder: the Transformers model."""
    model = make_hf_model(family, **({"num_hidden_layers": LAYERS, "vocab_size": vocab_size} | changes))
    model.save_pretrained(folder)
    make_tokenizer(words=vocab_size).save_pretrained(folder)
    return model


def pair_of(target, head, **options):
    """The pair of two folders, whose answers no token ends."""
    pair = kj.ModelPair.from_pretrained(target, head, **({"dtype": "float32"} | options))
    return dataclasses.replace(pair, eos=(NEVER,))


def _layer(random, name, inputs, sizes, bias=False, qk_norm=False):
    heads, groups, dim = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["head_dim"]
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes = {
        "self_attn.q_proj": (heads * dim, inputs),
        "self_attn.k_proj": (groups * dim, inputs),
        "self_attn.v_proj": (groups * dim, inputs),
        "self_attn.o_proj": (hidden, heads * dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    norms |= {"self_attn.q_norm": dim, "self_attn.k_norm": dim} if qk_norm else {}
    tensors = {f"{name}.{key}.weight": matrix(random, *shape) for key, shape in shapes.items()}
    tensors |= {f"{name}.{key}.weight": scale(random, size) for key, size in norms.items()}
    if bias:
        tensors |= {
            f"{name}.{key}.bias": 0.3 * scale(random, shape[0])
            for key, shape in shapes.items()
            if key.startswith("self_attn")
        }
    return tensors


def matrix(random, outputs, inputs):
    return (random.standard_normal((outputs, inputs)) * inputs**-0.5).astype(np.float32)


def scale(random, size):
    return (1 + 0.3 * random.standard_normal(size)).astype(np.float32)


_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
}


def write_eagle3_folder(
    folder, vocab_size=64, ids=None, *, seed=3, bias=False, embedding=True, hidden=HIDDEN, target=HIDDEN, **changes
):
    """An EAGLE-3 head over `ids`, in the order of its rows; `changes` of its config.json, None to leave out."""
    random = np.random.default_rng(seed)
    ids = np.arange(vocab_size) if ids is None else np.asarray(ids)
    sizes = _SIZES | {"hidden_size": hidden}
    tensors = _layer(random, "midlayer", 2 * hidden, sizes, bias)
    tensors |= {
        "fc.weight": matrix(random, hidden, 3 * target),
        "midlayer.hidden_norm.weight": scale(random, hidden),
        "norm.weight": 3 * scale(random, hidden),
        "lm_head.weight": matrix(random, len(ids), hidden),
        "d2t": ids - np.arange(len(ids)),
        "t2d": np.isin(np.arange(vocab_size), ids),
    }
    if embedding:
        tensors["embed_tokens.weight"] = matrix(random, vocab_size, hidden)
    config = sizes | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "attention_bias": bias,
        "num_hidden_layers": 1,
        "vocab_size": vocab_size,
        "draft_vocab_size": len(ids),
        "tie_word_embeddings": False,
    }
    return _write(folder, config | changes, tensors)


def write_dflash_folder(folder, vocab_size=64, *, seed=4, bias=False, hidden=HIDDEN, layers=2, own=None, **changes):
    """A DFlash head of blocks of 6 over three of the target's layers; `own` and `changes` of its config.json."""
    random = np.random.default_rng(seed)
    sizes = _SIZES | {"hidden_size": hidden}
    tensors = {
        "fc.weight": matrix(random, hidden, 3 * hidden),
        "hidden_norm.weight": scale(random, hidden),
        "norm.weight": scale(random, hidden),
    }
    for i in range(layers):
        tensors |= _layer(random, f"layers.{i}", hidden, sizes, bias, qk_norm=True)
    config = sizes | {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "attention_bias": bias,
        "block_size": 6,
        "dflash_config": {"mask_token_id": vocab_size - 1, "target_layer_ids": [0, 2, 4]} | (own or {}),
        "num_hidden_layers": layers,
        "num_target_layers": LAYERS,
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
    }
    return _write(folder, config | changes, tensors)


def _write(folder, config, tensors):
    folder.mkdir(exist_ok=True, parents=True)
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, str(folder / "model.safetensors"))
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


# The published forward passes.


class _Published:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = {name: np.asarray(x, np.float64) for name, x in load_file(folder / "model.safetensors").items()}

    def norm(self, name, x):
        eps = self.config["rms_norm_eps"]
        return self.tensors[f"{name}.weight"] * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)

    def linear(self, name, x):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0)

    def heads(self, name, x, positions=None):
        """`[heads, T, D]`; normed where there is a norm, and turned where there are positions."""
        x = self.linear(name, x).reshape(len(x), -1, self.config["head_dim"]).swapaxes(0, 1)
        normed = name.replace("_proj", "_norm")
        if f"{normed}.weight" in self.tensors:
            x = self.norm(normed, x)
        if positions is None:
            return x
        half = self.config["head_dim"] // 2
        angles = np.outer(positions, self.config["rope_theta"] ** (-np.arange(half) / half))
        cos, sin = (np.concatenate([f(angles), f(angles)], axis=-1) for f in (np.cos, np.sin))
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin

    def attend(self, query, key, value, visible):
        """query `[N, T, D]`, key and value `[G, S, D]`, visible `[T, S]`: `[T, N D]`."""
        times = len(query) // len(key)
        key, value = np.repeat(key, times, axis=0), np.repeat(value, times, axis=0)
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ value).swapaxes(0, 1).reshape(query.shape[1], -1)

    def mlp(self, name, x):
        gate = self.linear(f"{name}.gate_proj", x)
        return self.linear(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * self.linear(f"{name}.up_proj", x))


class PublishedEagle3(_Published):
    """As vLLM's `llama_eagle3` and SpecForge's `llama3_eagle` have it."""

    def __init__(self, folder, target):
        super().__init__(folder)
        self.embeddings = self.tensors.get("embed_tokens.weight")
        if self.embeddings is None:
            self.embeddings = _numpy(target.get_input_embeddings().weight)

    def draft_logits(self, states, tokens, drafts):
        """Logits f64 `[K, V]` of a draft, given its own tokens int `[K]`.

        Args:
          states: `[P, 3 H]`, the target's at all positions but the last token's.
          tokens: int `[P + 1]`.
          drafts: int `[K]`.
        """
        features = list(self.linear("fc", states))
        following = [*tokens[1:], *drafts]
        found = []
        for known in range(len(states), len(states) + len(drafts)):
            outputs = self._layer(np.stack(features[:known]), self.embeddings[following[:known]])
            compact = self.linear("lm_head", self.norm("norm", outputs[-1:]))[0]
            logits = np.full(self.config["vocab_size"], -np.inf)
            logits[np.arange(len(compact)) + self.tensors["d2t"].astype(int)] = compact
            found.append(logits)
            features.append(outputs[-1])
        return np.stack(found)

    def _layer(self, hidden, embeddings):
        normed = self.norm("midlayer.hidden_norm", hidden)
        residual = normed if self.config.get("norm_before_residual") else hidden
        x = np.concatenate([self.norm("midlayer.input_layernorm", embeddings), normed], axis=-1)
        positions = np.arange(len(x))
        query, key = (self.heads(f"midlayer.self_attn.{name}_proj", x, positions) for name in "qk")
        value = self.heads("midlayer.self_attn.v_proj", x)
        mixed = self.attend(query, key, value, positions[:, None] >= positions[None])
        x = residual + self.linear("midlayer.self_attn.o_proj", mixed)
        return x + self.mlp("midlayer.mlp", self.norm("midlayer.post_attention_layernorm", x))


class PublishedDFlash(_Published):
    """As z-lab's `DFlashDraftModel` has it."""

    def __init__(self, folder, target):
        super().__init__(folder)
        self.embeddings = _numpy(target.get_input_embeddings().weight)
        self.rows = _numpy(target.get_output_embeddings().weight)

    def draft_logits(self, states, tokens, drafts):
        """Logits f64 `[K, V]` of a block that is cut to the length of `drafts`; else as `PublishedEagle3` has it."""
        size, mask = self.config["block_size"], self.config["dflash_config"]["mask_token_id"]
        context = self.norm("hidden_norm", self.linear("fc", states))
        x = self.embeddings[[tokens[-1]] + [mask] * (size - 1)]
        positions = np.arange(len(states) + size)
        for i in range(self.config["num_hidden_layers"]):
            name = f"layers.{i}"
            normed = self.norm(f"{name}.input_layernorm", x)
            both = np.concatenate([context, normed])
            query = self.heads(f"{name}.self_attn.q_proj", normed, positions[-size:])
            key = self.heads(f"{name}.self_attn.k_proj", both, positions)
            value = self.heads(f"{name}.self_attn.v_proj", both)
            mixed = self.attend(query, key, value, np.ones((size, len(positions)), bool))
            x = x + self.linear(f"{name}.self_attn.o_proj", mixed)
            x = x + self.mlp(f"{name}.mlp", self.norm(f"{name}.post_attention_layernorm", x))
        return self.norm("norm", x)[1 : 1 + len(drafts)] @ self.rows.T


def _numpy(parameter):
    return parameter.detach().numpy().astype(np.float64)


def target_states(model, tokens, blocks):
    """What a Transformers model has after some of its blocks, `[T, n H]`: 0 is the first."""
    import torch

    with torch.no_grad():
        found = model(torch.tensor(np.asarray(tokens)[None]), output_hidden_states=True).hidden_states
    return np.concatenate([found[block + 1][0].numpy() for block in blocks], axis=-1).astype(np.float64)


def drafts_of(pair, prompts, accepted, length, chunk, sampling=None, seed=0, shared=0):
    """Drafts of a pair's head over rows that keep so many tokens of each, int `[B]` a cycle, and one that is wrong.

    Yields each cycle's sequences, lists of ints, and its `Draft`.
    """
    sampling = Sampling.create() if sampling is None else sampling
    models, drafter = Models(pair.target, pair.draft), drafter_of(pair.draft)
    lengths = np.asarray([len(prompt) for prompt in prompts])
    width = -(-int(lengths.max()) // chunk) * chunk
    padded = np.stack([np.pad(prompt, (0, width - len(prompt))) for prompt in prompts]).astype(np.int32)
    sequence = np.pad(padded, ((0, 0), (0, 64 - width)))

    @jax.jit
    def begin(models, padded, lengths):
        empty = models.target.init_cache(len(prompts), 64), drafter.init(models, len(prompts), 64)
        return prefill(models, drafter, *empty, padded, lengths, shared, plan=Prefill(chunk))

    @jax.jit
    def propose(models, cache, state, context):
        return drafter.propose(models, cache, state, context, Request(length))

    @jax.jit
    def observe(models, cache, state, start, tokens, following, valid):
        features, cache = models.target(tokens, cache.at_length(start), layers=drafter.layers)
        return cache, drafter.observe(models, state, Window(start, tokens, following, features, valid))

    cache, state = begin(models, jnp.asarray(padded), jnp.asarray(lengths, jnp.int32))
    consumed = (lengths - 1).astype(np.int32)
    for cycle, kept in enumerate(np.minimum(accepted, length)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), cycle), len(prompts))
        context = Context(
            jnp.asarray(sequence), jnp.asarray(consumed), jnp.full(len(prompts), length, jnp.int32), keys, sampling
        )
        draft, cache, state = propose(models, cache, state, context)
        np.testing.assert_array_equal(getattr(state, "cache", state).length, consumed)
        yield [row[: end + 1].tolist() for row, end in zip(sequence, consumed, strict=True)], draft
        drawn = np.asarray(draft.tokens)
        rows = np.arange(len(prompts))
        tokens = np.concatenate([sequence[rows, consumed][:, None], drawn], axis=1)
        following = np.concatenate([drawn, drawn[:, :1]], axis=1)
        for row, count in enumerate(kept):
            following[row, count] = (following[row, count] + 1) % pair.target.vocab_size
            sequence[row, consumed[row] + 1 : consumed[row] + count + 2] = following[row, : count + 1]
        valid = np.asarray(kept, np.int32) + 1
        cache, state = observe(models, cache, state, *map(jnp.asarray, (consumed, tokens, following, valid)))
        consumed = consumed + valid


PROMPTS = [np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]), np.array([8]), np.array([9, 7, 9, 3, 2])]
KEPT = [[2, 0, 4], [0, 3, 1], [4, 4, 0], [1, 2, 2], [0, 0, 0]]


def check_against(published, model, pair, blocks, length=4, chunk=4):
    """Every draft's logits are those of the published pass over the target's own states, to 1e-4 of the largest."""
    for sequences, draft in drafts_of(pair, PROMPTS, KEPT, length, chunk):
        for row, tokens in enumerate(sequences):
            states = np.zeros((0, len(blocks) * HIDDEN))
            if len(tokens) > 1:
                states = target_states(model, tokens[:-1], blocks)
            elif isinstance(published, PublishedEagle3):
                continue  # a row of one token has no feature to begin with: what is drafted is not said
            drawn = np.asarray(draft.tokens[row])
            expected = published.draft_logits(states, tokens, drawn)
            found = np.asarray(draft.raw_logits[row])
            assert np.array_equal(np.isfinite(expected), np.isfinite(found))
            finite = np.isfinite(expected)
            size = np.abs(expected[finite]).max()
            np.testing.assert_allclose(found[finite], expected[finite], atol=1e-4 * max(1, size))
            assert drawn.tolist() == expected.argmax(axis=-1).tolist()
